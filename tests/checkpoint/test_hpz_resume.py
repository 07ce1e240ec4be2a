"""A secondary partition (hpZ): what is loaded reaches its copies of the weights too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan


def train_to(step: int, template: str | Path, run: Path, data: Path, ranks: int) -> None:
    from gpt2_ds.train.run import train

    plan = small_plan(data, run, template=template, world_size=ranks, max_steps=step)
    train(plan, small_corpus(data))


@pytest.mark.heavy
def test_it_goes_on_from_its_own_checkpoint_and_from_another_stage(tmp_path: Path) -> None:
    data, hpz = small_dataset(tmp_path), tmp_path / "hpz.json"
    text = (REPOSITORY / "ds_configs/zero3_hpz.json").read_text()
    text = text.replace('_size": 8', '_size": 2').replace('threshold": 100000,', 'threshold": 0,')
    hpz.write_text(text)
    for ranks, step, template, run in (  # DeepSpeed makes the group of hpZ once a process
        (2, 6, "zero3", "whole"),
        (4, 3, hpz, "hpz"),
        (4, 6, hpz, "hpz"),
        (2, 3, "zero1", "elastic"),
        (4, 6, hpz, "elastic"),
    ):
        run_ranks(train_to, ranks, tmp_path, step, template, tmp_path / run, data, ranks)
    whole, *others = (
        [loss for _, loss in metrics_of(tmp_path / run, "step", "loss")]
        for run in ("whole", "hpz", "elastic")
    )
    assert len(whole) == 6
    for losses in others:
        assert losses == pytest.approx(whole, abs=1e-5)
