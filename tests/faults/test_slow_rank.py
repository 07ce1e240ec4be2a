"""A rank that takes longer is named, wherever in the step it loses the time."""

from __future__ import annotations

import io
import json
import platform
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2_ds.train.loop as loop
from tests.conftest import REPOSITORY
from tests.faults.conftest import Row
from tests.faults.jobs import events_of
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_plan

STEPS = 20
PLACES = ("reading", "forward", "backward")


class Slow:
    """Each step takes longer: before the model, or between its blocks, on the way there or back."""

    def __init__(self, place: str, seconds: float) -> None:
        self._plain, self._place, self._seconds = loop.window_loss, place, seconds
        self._hooked = False

    def __call__(self, engine: Any, *args: Any, **named: Any) -> torch.Tensor:
        if self._place == "reading":
            time.sleep(self._seconds)
        elif not self._hooked:
            engine.module.transformer.h[0].register_forward_hook(self._pause)
            self._hooked = True
        return self._plain(engine, *args, **named)

    def _pause(self, block: Any, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():  # validation
            return
        if self._place == "forward":
            time.sleep(self._seconds)
        else:  # the gradients of the blocks behind it are there, and at ZeRO-3 reduced
            hidden = output[0] if isinstance(output, tuple) else output
            hidden.register_hook(lambda _: time.sleep(self._seconds))


def write_template(stage: str, folder: Path) -> None:
    """One of ds_configs; at ZeRO-3, every parameter is cut, and gathered at each use."""
    template = json.loads((REPOSITORY / f"ds_configs/{stage}.json").read_text())
    if stage == "zero3":
        template["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    folder.mkdir()
    (folder / f"{stage}.json").write_text(json.dumps(template))


def train_at(
    data: Path, run: Path, stage: str, place: str, base_seconds: float, extra_seconds: float
) -> str:
    """What a run said in which all take some seconds a step, and rank 1 some more."""
    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.train.run import train

    plan = small_plan(
        data,
        run,
        f"schedule.total_tokens={STEPS * 256}",
        f"schedule.decay_tokens={STEPS * 256}",
        "evaluation.interval_steps=100",
        template=run.parent / f"{stage}.json",
        world_size=2,
    )
    plain, said = loop.window_loss, io.StringIO()
    seconds = base_seconds + (extra_seconds if rank() == 1 else 0.0)
    loop.window_loss = Slow(place, seconds / plan.derived.gradient_accumulation_steps)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            train(plan, small_corpus(data))
    finally:
        loop.window_loss = plain
    return said.getvalue()


def each(data: Path, folder: Path, cases: list[tuple[str, str, float, float]]) -> list[str]:
    return [
        train_at(data, folder / f"{i}" / "run", stage, place, base, extra)
        for i, (stage, place, base, extra) in enumerate(cases)
    ]


def named_within_20_steps(
    data: Path, folder: Path, cases: list[tuple[str, str, float, float]]
) -> list[int]:
    """Rank 1 is named in each case with extra seconds, once and with their number; after which."""
    steps = []
    for i, (stage, *_) in enumerate(cases):
        write_template(stage, folder / f"{i}")
    found, _ = run_ranks(each, 2, folder, data, folder, cases)
    for i, (case, said) in enumerate(zip(cases, found, strict=True)):
        events = events_of(folder / f"{i}" / "run", "slow_rank")
        if case[3] == 0.0:
            assert "median rank" not in said, case
            assert events == [], case
            continue
        named = f"rank 1 on {platform.node()} takes 0."
        assert said.count(f"warning: {named}") == 1, (case, said)  # once, however long it is slow
        (event,) = events
        assert event["reason"].startswith(named)
        assert 0.10 < float(event["reason"].split(" takes ")[1].split()[0]) < 0.30, event
        assert event["step"] <= 20
        steps.append(event["step"])
    return steps


@pytest.mark.heavy
def test_a_slow_rank_is_named_within_20_steps(data: Path, tmp_path: Path) -> None:
    cases = [
        ("zero1", "reading", 0.0, 0.0),
        ("zero1", "backward", 0.0, 0.2),
        ("zero3", "forward", 0.0, 0.2),
    ]
    named_within_20_steps(data, tmp_path, cases)
    losses = [metrics_of(tmp_path / f"{i}" / "run", "step", "loss") for i in (0, 1)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_a_slow_rank_is_named_at_every_stage(
    stage: str, data: Path, tmp_path: Path, row: Row
) -> None:
    cases = [(stage, place, 0.0, 0.2) for place in PLACES]
    cases += [(stage, "forward", 1.0, 0.0), (stage, "backward", 1.0, 0.2)]
    steps = named_within_20_steps(data, tmp_path, cases)
    row.figure(f"{stage}: {len(steps)} of 4 named after step {', '.join(map(str, steps))}")
