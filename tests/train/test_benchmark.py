"""What launch/benchmark.py times is the step that a run takes."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.small_run import small_plan

RAMP = (
    "batch.ramp={start_tokens: 128, increment_tokens: 128, length_tokens: 512}",
    "schedule.total_tokens=2560",
    "schedule.decay_tokens=2560",
)


def steps_taken(run_dir: Path) -> tuple[list[tuple[int, int]], str, int]:
    """Steps done before each step that was timed, with the sequences of its micro-batches."""
    from gpt2_ds.train import benchmark

    plan = small_plan("data/x", run_dir, *RAMP, template="zero1", world_size=2)
    taken: list[tuple[int, int]] = []
    take_step = benchmark.take_step

    def counted(run: Any, done: Any) -> Any:
        step = take_step(run, done)
        accumulation = run.engine.gradient_accumulation_steps()
        taken.append((done.step, accumulation * run.loader.micro_batch_size))
        return step

    benchmark.take_step = counted
    said = io.StringIO()
    with redirect_stdout(said):
        benchmark.benchmark([plan], steps=2, warmup_steps=1, plain_torch=False)
    return taken, said.getvalue(), plan.derived.batches.levels[-1].first_step


@pytest.mark.heavy
def test_it_times_the_loops_own_step_at_the_full_batch(tmp_path: Path) -> None:
    for taken, said, first_full in run_ranks(steps_taken, 2, tmp_path, tmp_path / "run"):
        assert first_full > 1
        assert taken == [(first_full - 1 + number, 4) for number in range(3)]
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
