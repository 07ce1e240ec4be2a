"""A rank that is stopped or slow is named; a job that cannot go on ends."""

from __future__ import annotations

import io
import os
import platform
import signal
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2_ds.train.loop as loop
from gpt2_ds.train.ledger import read_ledger
from tests.faults.jobs import job
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_plan

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
    assert TIMEOUT_SECONDS - 1 < seconds < TIMEOUT_SECONDS + 12  # with the launcher's own


@pytest.mark.faults
@pytest.mark.parametrize("template", ["zero0", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("victim", [0, 1])
def test_every_stopped_rank(victim: int, template: str, data: Path, tmp_path: Path) -> None:
    seconds, _ = stopped_rank_is_named(data, tmp_path / "run", victim, template)
    assert TIMEOUT_SECONDS - 1 < seconds < TIMEOUT_SECONDS + 12
    print(f"\nSTOP of rank {victim}, {template}: named and gone after {seconds:.1f} s")


class Slow:
    """Each step takes one rank longer."""

    def __init__(self, seconds: float, micro_steps: int) -> None:
        self._plain, self._seconds = loop.window_loss, seconds / micro_steps

    def __call__(self, *args: Any, **named: Any) -> torch.Tensor:
        time.sleep(self._seconds)
        return self._plain(*args, **named)


def train_at(data: Path, run: Path, extra_seconds: float) -> str:
    """What a run said in which rank 1 takes longer."""
    from gpt2_ds.config.launcher import rank
    from gpt2_ds.train.run import train

    steps = ("schedule.total_tokens=5120", "schedule.decay_tokens=5120")  # 20
    plan = small_plan(data, run, *steps, "evaluation.interval_steps=100", world_size=2)
    plain, said = loop.window_loss, io.StringIO()
    if rank() == 1:
        loop.window_loss = Slow(extra_seconds, plan.derived.gradient_accumulation_steps)
    try:
        with redirect_stdout(said):
            train(plan, small_corpus(data))
    finally:
        loop.window_loss = plain
    return said.getvalue()


def sound_and_slow(data: Path, folder: Path) -> list[str]:
    return [train_at(data, folder / "sound", 0.0), train_at(data, folder / "slow", 0.2)]


@pytest.mark.heavy
def test_a_slow_rank_is_named_within_20_steps(data: Path, tmp_path: Path) -> None:
    (sound, slow), _ = run_ranks(sound_and_slow, 2, tmp_path, data, tmp_path)
    named = f"rank 1 on {platform.node()} takes 0.2"
    assert slow.count(f"warning: {named}") == 1  # once, however long it stays slow
    (event,) = slow_events(tmp_path / "slow")
    assert event["reason"].startswith(named)
    assert event["step"] <= 20
    assert "median rank" not in sound
    assert slow_events(tmp_path / "sound") == []
    losses = [metrics_of(tmp_path / name, "step", "loss") for name in ("sound", "slow")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 20


def slow_events(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_ledger(run / "ledger.jsonl") if line["event"] == "slow_rank"]
