"""A run that is stopped and resumed after each of its steps: every number is the same."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_plan

MICRO_BATCHES = {1: 4, 4: 1}  # by accumulation: 8 sequences on 2 ranks
NUMBERS = (
    ("step", "loss", "gradient_norm", "learning_rate", "tokens_seen"),
    ("step", "validation_loss", "validation_perplexity"),
)


def unbroken_and_stopped_after_each(
    data: Path, folder: Path, steps: int, cases: list[tuple[int, int]]
) -> None:
    """Each case (stage, accumulation) twice: in one go, and one step a job."""
    from gpt2_ds.train.run import train

    corpus = small_corpus(data)
    for stage, accumulation in cases:
        for name, stops in (("unbroken", [steps]), ("stopped", range(1, steps + 1))):
            for stop in stops:
                plan = small_plan(
                    data,
                    folder / f"{name}_{stage}_{accumulation}",
                    f"batch.micro_batch_size={MICRO_BATCHES[accumulation]}",
                    f"schedule.total_tokens={steps * 256}",
                    f"schedule.decay_tokens={steps * 256}",
                    "evaluation.interval_steps=1",  # a job validates at its end, too
                    "model.resid_pdrop=0.1",
                    "model.embd_pdrop=0.1",
                    "model.attn_pdrop=0.1",
                    template=f"zero{stage}",
                    world_size=2,
                    max_steps=stop,
                )
                with redirect_stdout(io.StringIO()):
                    train(plan, corpus)


def in_hex(run: Path) -> list[list[tuple[Any, ...]]]:
    """The numbers of a run, with every bit."""
    return [
        [tuple(x.hex() if isinstance(x, float) else x for x in line) for line in found]
        for found in (metrics_of(run, *names) for names in NUMBERS)
    ]


def compare(folder: Path, steps: int, stage: int, accumulation: int) -> None:
    """Fails where a bit differs; says what was compared."""
    unbroken = in_hex(folder / f"unbroken_{stage}_{accumulation}")
    assert [[line[0] for line in found] for found in unbroken] == [list(range(1, steps + 1))] * 2
    stopped = folder / f"stopped_{stage}_{accumulation}"
    assert in_hex(stopped) == unbroken
    print(
        f"\nstopped after each of {steps} steps, stage {stage}, accumulation {accumulation}: "
        f"{sum(map(len, unbroken))} lines equal in every bit"
    )


@pytest.mark.heavy
def test_stopped_after_each_of_six_steps(data: Path, tmp_path: Path) -> None:
    cases = [(1, 4), (3, 1)]
    run_ranks(unbroken_and_stopped_after_each, 2, tmp_path, data, tmp_path, 6, cases)
    for stage, accumulation in cases:
        compare(tmp_path, 6, stage, accumulation)


@pytest.mark.faults
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_stopped_after_each_of_twenty_steps(
    accumulation: int, stage: int, data: Path, tmp_path: Path
) -> None:
    cases = [(stage, accumulation)]
    run_ranks(unbroken_and_stopped_after_each, 2, tmp_path, data, tmp_path, 20, cases)
    compare(tmp_path, 20, stage, accumulation)
