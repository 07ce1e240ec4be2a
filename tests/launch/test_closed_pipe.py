"""`... | head`: a reader that has seen enough ends a command that only shows things."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.saved_files import save
from tests.conftest import REPOSITORY
from tests.small_run import small_dataset

RECIPE = ("--recipe", "recipes/quickstart.yaml")


@pytest.fixture
def shown(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """The words of a command that prints something and changes nothing."""
    command: str = request.param
    if command == "inspect_data.py":
        return [command, "stats", str(small_dataset(tmp_path))]
    if command == "checkpoints.py":
        save(tmp_path / "run", 1)
        return [command, "list", "--run", str(tmp_path / "run")]
    return [command, *(("show",) if command == "plan.py" else ("--dry-run",)), *RECIPE]


@pytest.mark.parametrize(
    "shown", ["train.py", "plan.py", "inspect_data.py", "checkpoints.py"], indirect=True
)
def test_nothing_is_said_of_a_reader_that_has_gone(shown: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, f"launch/{shown[0]}", *shown[1:]],
            cwd=REPOSITORY,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, "")
