"""A run whose batch grows, broken in the middle of the ramp and gone on with elsewhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.faults.test_elastic_runs import part_of_a_run
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_plan

# 128, 256 and 384 tokens, a third of 1,000 each; then 512. Shared evenly by 1, 2 and 4 ranks.
RAMP = (
    "batch.global_batch_tokens=512",
    "batch.ramp.start_tokens=128",
    "batch.ramp.increment_tokens=128",
    "batch.ramp.length_tokens=1000",
    "schedule.total_tokens=3328",
    "schedule.decay_tokens=3328",
)
SIZES = [128] * 3 + [256] * 2 + [384] + [512] * 4


@pytest.mark.heavy
def test_it_goes_on_in_the_middle_of_the_ramp(data: Path, tmp_path: Path) -> None:
    plan = small_plan(data, tmp_path / "x", *RAMP)
    steps = plan.derived.steps
    sizes = [plan.derived.batches.of_step(step).global_batch_size * 32 for step in range(1, 11)]
    assert (sizes, steps) == (SIZES, len(SIZES))

    def part(run: str, world_size: int, template: str, until: int) -> None:
        folder = tmp_path / run
        run_ranks(
            part_of_a_run, world_size, tmp_path, data, folder, world_size, template, until, RAMP
        )

    part("whole", 1, "zero1", steps)
    for world_size, template, until in ((2, "zero1", 2), (1, "zero3", 4), (2, "zero2", steps)):
        part("broken", world_size, template, until)
    names = ("step", "global_batch_tokens", "tokens_seen", "learning_rate")
    whole = metrics_of(tmp_path / "whole", *names)
    seen = itertools.accumulate(SIZES)
    assert [row[:3] for row in whole] == [
        (step, size, tokens)
        for step, (size, tokens) in enumerate(zip(SIZES, seen, strict=True), start=1)
    ]
    assert metrics_of(tmp_path / "broken", *names) == whole
    losses = [loss for _, loss in metrics_of(tmp_path / "whole", "step", "loss")]
    found = [loss for _, loss in metrics_of(tmp_path / "broken", "step", "loss")]
    assert found == pytest.approx(losses, abs=1e-4)
