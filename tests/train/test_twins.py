"""Every recipe's twin, by the real loop: its own template, a save and a resume in the middle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.run_plan import RunPlan, resolve_run
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
MIDDLE = 6  # a step past every ramp


def twin(name: str, data: Path, runs: Path, max_steps: int | None = None) -> RunPlan:
    return resolve_run(
        REPOSITORY / f"recipes/{name}.yaml",
        world_size=2,
        overrides=[f"data.path={data}", "data.prepare=null"],
        run_dir=runs / name,
        max_steps=max_steps,
        twin=True,
    )


def train_in_two_parts(data: Path, runs: Path) -> dict[str, Any]:
    """One after the other in one process group: seconds taken by each."""
    from gpt2_ds.train.run import train

    seconds = {}
    for path in RECIPES:
        began = time.perf_counter()
        for until in (MIDDLE, None):
            train(twin(path.stem, data, runs, until), small_corpus(data))
        seconds[path.stem] = time.perf_counter() - began
    return seconds


@pytest.mark.heavy(minutes=3)
def test_every_recipes_twin_trains_saves_and_resumes(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    print(run_ranks(train_in_two_parts, 2, tmp_path, data, tmp_path)[0])  # seconds of each
    for path in RECIPES:
        plan = twin(path.stem, data, tmp_path)
        end = plan.derived.steps
        assert 45 <= end <= 55
        found = metrics_of(plan.run_dir, "step", "tokens_seen", "loss")
        batches = plan.derived.batches
        seen = [32 * batches.samples_after(step) for step in range(1, end + 1)]
        assert [row[:2] for row in found] == list(enumerate(seen, start=1))
        assert batches.of_step(MIDDLE) == batches.levels[-1]
        losses = [loss for _, _, loss in found]
        assert sum(losses[-3:]) < sum(losses[:3]), path.stem
        saved = {path.name for path in (plan.run_dir / "checkpoints").glob("step_*")}
        every = plan.recipe.checkpoint.interval_steps
        due = [MIDDLE, *range(every, end, every), end]
        assert {f"step_{step:08d}" for step in due[-2:]} <= saved  # what keep_last leaves
        every = plan.recipe.evaluation.interval_steps
        validated = {MIDDLE, *range(every, end, every), end}  # a last step is validated too
        found = metrics_of(plan.run_dir, "step", "validation_loss")
        assert {step for step, _ in found} == validated
