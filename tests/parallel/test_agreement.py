"""Small agreements of ranks, and failures that end them all alike."""

from __future__ import annotations

import errno
import math
import time
from pathlib import Path

import pytest

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.files.heartbeat import Heartbeat
from gpt2_ds.parallel.agreement import by_rank_0
from tests.ranks import run_ranks


def agreements() -> dict[str, object]:
    from gpt2_ds.hosts.launcher import rank
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


def long_works() -> dict[str, object]:
    """What a watchdog hears of work that gets on for a while and then hangs for as long."""
    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.parallel.agreement import by_all, totals

    heard: list[tuple[float, str]] = []
    began, ended = time.monotonic(), math.inf

    def hear(doing: str, alone: bool) -> None:
        heard.append((time.monotonic() - began, doing))

    def work() -> int:
        nonlocal ended
        for _ in range(10):
            time.sleep(0.1)
            copying.beat()
        time.sleep(1.0)
        ended = time.monotonic() - began
        return rank()

    found: dict[str, object] = {}
    copying = Heartbeat(hear, "copying x")
    for name, call in (
        ("rank 0", lambda: by_rank_0(work, copying)),
        ("all", lambda: by_all(work if rank() == 0 else rank, copying)),
    ):
        heard.clear()
        ended = math.inf
        totals([0.0])  # all begin at once
        began = time.monotonic()
        result = call()
        # That it is done here may be told, too, before the other rank hears of it.
        last = max(at for at, _ in heard if at < ended)
        found[name] = result, heard[0][0], last, {doing for _, doing in heard}

    def failing() -> None:
        raise RunError("no")

    try:
        by_rank_0(failing, copying)
    except RunError as error:
        found["failed"] = str(error)
    return found


def test_work_that_gets_on_is_told_from_work_that_hangs(tmp_path: Path) -> None:
    zero, one = run_ranks(long_works, 2, tmp_path)
    for name, results in (("rank 0", (0, 0)), ("all", (0, 1))):
        for found, result in zip((zero, one), results, strict=True):
            assert found[name][0] == result
            assert found[name][1] < 0.5  # at once: what is waited for
            assert found[name][3] == {"copying x"}
        assert 0.8 < zero[name][2] < 1.6  # nothing more was done after a second
        assert one[name][2] > 1.7  # who waits is well
    assert zero["failed"] == one["failed"] == "no"
