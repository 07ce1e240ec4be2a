"""Checkpoints of every stage at one, two and three ranks, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.states.trained_checkpoints import SOURCES, write_all
from tests.parallel.test_process_group import end_all_started
from tests.ranks import run_ranks


@pytest.fixture(autouse=True)
def nothing_started_is_left() -> Iterator[None]:
    yield
    end_all_started()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the checkpoints, and by name what each engine held and its next losses."""
    folder = tmp_path_factory.mktemp("trained")
    known: dict[str, Any] = {}
    for ranks in SOURCES:
        known |= run_ranks(write_all, ranks, folder, folder)[0]
    return folder, known
