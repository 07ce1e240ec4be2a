"""One run on changing numbers of ranks, ZeRO stages and hosts of the optimizer."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from gpt2_ds.checkpoint.manifest import complete_checkpoints
from gpt2_ds.record.ledger import read_ledger
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_plan

# Twelve sequences a step: shared evenly by 1, 2 and 3 ranks.
BATCH = (
    "batch.global_batch_tokens=384",
    "schedule.total_tokens=3456",  # 9 steps
    "schedule.decay_tokens=3456",
)


def part_of_a_run(
    data: Path,
    run: Path,
    world_size: int,
    template: str,
    until: int,
    batch: tuple[str, ...] = BATCH,
) -> None:
    from gpt2_ds.train.run import train

    plan = small_plan(data, run, *batch, template=template, world_size=world_size, max_steps=until)
    train(plan, small_corpus(data))


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run_ranks(part_of_a_run, 1, folder, data, folder / "run", 1, "zero1", 9)
    return folder / "run"


JOURNEYS = {
    "2 -> 1 -> 2 ranks": [(2, "zero2"), (1, "zero2"), (2, "zero2")],
    "1 -> 3 ranks": [(1, "zero1"), (3, "zero1")],
    "stage 1 -> 3 -> 2": [(2, "zero1"), (2, "zero3"), (2, "zero2")],
    "stage 0 -> 3 -> 0": [(1, "zero0"), (2, "zero3"), (1, "zero0")],
    "offload on and off": [(2, "zero3"), (2, "zero3_offload"), (1, "zero1")],
}


@pytest.mark.heavy
@pytest.mark.parametrize("journey", JOURNEYS)
def test_the_same_losses_wherever_it_ran(
    journey: str, data: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-compiler")  # offload with torch's AdamW: nothing to compile
    parts = JOURNEYS[journey]
    ends = [4, 6, 9] if len(parts) == 3 else [5, 9]
    run = tmp_path / "run"
    for (world_size, template), end in zip(parts, ends, strict=True):
        run_ranks(part_of_a_run, world_size, tmp_path, data, run, world_size, template, end)
    expected = metrics_of(unbroken, "step", "loss")
    found = metrics_of(run, "step", "loss")
    assert [step for step, _ in found] == [step for step, _ in expected]
    # What differs is the order in which gradients are summed.
    torch.testing.assert_close([x for _, x in found], [x for _, x in expected], rtol=1e-5, atol=0)
    events = [line["event"] for line in read_ledger(run / "ledger.jsonl")]
    changes = sum(a[0] != b[0] for a, b in itertools.pairwise(parts))
    assert events.count("world_size") == changes
    stages = [template.removesuffix("_offload") for _, template in parts]
    assert events.count("zero_stage") == sum(a != b for a, b in itertools.pairwise(stages))
    assert (events[0], events.count("resume"), events[-1]) == ("start", len(parts) - 1, "done")
    _, manifest = complete_checkpoints(run)[0]
    assert (manifest.step, manifest.world_size) == (9, parts[-1][0])


def test_a_number_of_ranks_that_does_not_divide_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="World sizes that work: 1, 2, 3, 6"):
        small_plan(data, tmp_path / "run", *BATCH, world_size=5)
