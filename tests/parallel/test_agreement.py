"""Small agreements of ranks, and failures that end them all alike."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.parallel.agreement import FILE_TROUBLES, by_rank_0, file_trouble
from tests.ranks import run_ranks


def agreements() -> dict[str, object]:
    from gpt2_ds.config.launcher import rank
    from gpt2_ds.parallel.agreement import all_agree, gathered, totals

    def fail(error: Exception) -> str:
        def work() -> None:
            raise error

        try:
            by_rank_0(work)
        except (RunError, UserError) as seen:
            return f"{type(seen).__name__}: {seen}"
        return "nothing"

    def disagree() -> str:
        try:
            all_agree("broke" if rank() == 1 else None)
        except RunError as error:
            return str(error)
        return "nothing"

    all_agree(None)
    return {
        "totals": totals([rank(), 0.1]),
        "gathered": gathered(f"rank {rank()}"),
        "rank 0": by_rank_0(lambda: f"from {rank()}"),
        "run": fail(RunError("no")),
        "user": fail(user_error("--x", "is wrong", "Mend it.")),
        "disk": fail(OSError(errno.ENOSPC, "No space left on device", "runs/x")),
        "disagree": disagree(),
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_learns_the_same(world_size: int, tmp_path: Path) -> None:
    results = run_ranks(agreements, world_size, tmp_path)
    assert results == [results[0]] * world_size
    assert results[0] == {
        "totals": [world_size * (world_size - 1) / 2, pytest.approx(0.1 * world_size)],
        "gathered": [f"rank {rank}" for rank in range(world_size)],
        "rank 0": "from 0",
        "run": "RunError: no",
        "user": "UserError: --x: is wrong. Mend it.",
        "disk": "RunError: runs/x: No space left on device. Make room on this disk, then give the "
        "same command again.",
        "disagree": "rank 1: broke" if world_size == 2 else "nothing",
    }


@pytest.mark.parametrize("number", sorted(FILE_TROUBLES))
def test_each_trouble_of_a_file_has_a_fix(number: int) -> None:
    said = file_trouble(OSError(number, "words", "a/b"))
    assert said == f"a/b: words. {FILE_TROUBLES[number]}."


def test_trouble_without_a_file_or_of_another_kind() -> None:
    assert file_trouble(OSError("odd")) == "odd. Mend it, then give the same command again."
