"""launch/plan.py as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_ds.plan.commands import COMMANDS
from tests.conftest import REPOSITORY

RECIPE = "--recipe recipes/gpt3_175b.yaml"


def typed(words: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "launch/plan.py"), *words.split()]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words, code, said",
    [
        ("list", 0, "gpt3_175b"),
        (f"show {RECIPE} --gpus 16", 0, "schedule.total_tokens"),
        (f"schedule {RECIPE}", 0, "warm-up ends"),
        (f"fit {RECIPE} --gpus 64xH100-80", 0, "--expect-ranks 64"),
        (f"fit {RECIPE} --gpus 1xL4-24", 1, "Nothing fits"),
        (f"lint {RECIPE} --gpus 16", 0, "nothing found"),
        ("diff gpt3_175b paper", 0, "sparse"),
    ],
)
def test_each_command(words: str, code: int, said: str) -> None:
    done = typed(words)
    assert (done.returncode, done.stderr) == (code, "")
    assert said in done.stdout
    assert words.split()[0] in COMMANDS


def test_a_mistake_is_said_without_a_traceback() -> None:
    done = typed("lint --recipe recipes/no.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipes/no.yaml")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command, word", [("show", "16xNonsense"), ("schedule", "-1"), ("lint", "1e3"), ("fit", "0")]
)
def test_gpus_have_one_grammar(command: str, word: str) -> None:
    done = typed(f"{command} {RECIPE} --gpus {word}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --gpus {word}: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough() -> None:
    """As in `plan.py show ... | head -1`."""
    command = [sys.executable, "launch/plan.py", "show", *RECIPE.split(), "--gpus", "16"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
