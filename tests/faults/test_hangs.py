"""A rank that is stopped is named; a job that cannot continue ends."""

from __future__ import annotations

import os
import platform
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Row
from tests.faults.jobs import gone, job

TIMEOUT_SECONDS = 8  # starting takes several seconds on a busy machine
LONG = ("schedule.total_tokens=2560000", "schedule.decay_tokens=2560000")
SETTINGS = (*LONG, f"health.timeout_seconds={TIMEOUT_SECONDS}", "evaluation.interval_steps=1000")


def stopped_rank_is_named(
    data: Path, run: Path, victim: int, template: str, *words: str
) -> tuple[float, str]:
    """Stop a rank; seconds until the job has ended, and what it printed."""
    with job(run, data, *SETTINGS, template=template, words=words, deepspeed=True) as started:
        started.until_step(3)
        ranks = started.rank_processes()
        assert len(ranks) == 2
        time.sleep(1.2)  # a rank says every half second where it is
        began = time.monotonic()
        os.kill(ranks[victim], signal.SIGSTOP)
        (code,) = started.wait(60)
        while started.left():
            assert time.monotonic() - began < 60, started.text()
            time.sleep(0.05)
        seconds, text = time.monotonic() - began, started.text()
    assert code != 0
    name = f"rank {victim} on {platform.node()} (pid {ranks[victim]})"
    assert f"error: {name} is stopped or stuck: nothing was heard of it for" in text
    assert f"rank {1 - victim} on" not in text  # who only waits is not blamed
    assert f"health.timeout_seconds is {TIMEOUT_SECONDS}." in text
    for rank, pid in enumerate(ranks):
        stacks = (run / f"logs/stacks_rank_{rank:05d}.txt").read_text()
        assert stacks.startswith(f"rank {rank} on {platform.node()} (pid {pid}), "), stacks
        assert 'loop.py", line ' in stacks, stacks  # the main thread is in the training loop
    assert "in _exchange" in (run / "logs/stacks_rank_00000.txt").read_text()  # and other threads
    return seconds, text


@pytest.mark.heavy
def test_a_stopped_rank_is_named_and_the_job_ends(data: Path, tmp_path: Path) -> None:
    seconds, _ = stopped_rank_is_named(data, tmp_path / "run", 1, "zero1")
    assert TIMEOUT_SECONDS - 1 < seconds < TIMEOUT_SECONDS + 10  # with the launcher's own


@pytest.mark.faults
@pytest.mark.parametrize("template", ["zero0", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("victim", [0, 1])
def test_every_stopped_rank(
    victim: int, template: str, data: Path, tmp_path: Path, row: Row
) -> None:
    seconds, _ = stopped_rank_is_named(data, tmp_path / "run", victim, template)
    assert TIMEOUT_SECONDS - 1 < seconds < TIMEOUT_SECONDS + 10
    row.seconds(seconds)


def killed_rank_is_named(data: Path, run: Path, victim: int, template: str) -> float:
    """Kill a rank; seconds until nothing is left of the job, which has named it."""
    settings = (*LONG, "evaluation.interval_steps=1000")
    with job(run, data, *settings, template=template, deepspeed=True) as started:
        started.until_step(3)
        ranks = started.rank_processes()
        began = time.monotonic()
        os.kill(ranks[victim], signal.SIGKILL)
        (code,) = started.wait(60)
        gone(started)
        seconds, text = time.monotonic() - began, started.text()
    assert code != 0
    name = f"rank {victim} on {platform.node()} (pid {ranks[victim]})"
    assert f"{name} was killed or died in step" in text
    assert f"rank {1 - victim} on" not in text
    return seconds


@pytest.mark.heavy
def test_a_killed_rank_is_named_and_the_job_ends(data: Path, tmp_path: Path) -> None:
    assert killed_rank_is_named(data, tmp_path / "run", 1, "zero1") < 15


@pytest.mark.faults
@pytest.mark.parametrize("template", ["zero0", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("victim", [0, 1])
def test_every_killed_rank(
    victim: int, template: str, data: Path, tmp_path: Path, row: Row
) -> None:
    seconds = killed_rank_is_named(data, tmp_path / "run", victim, template)
    assert seconds < 15
    row.seconds(seconds)
