"""The learning rate, against torch's schedulers and against what its docstring promises."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from gpt2_ds.config.recipe import (
    AnySchedule,
    ConstantSchedule,
    CosineSchedule,
    WarmupStableDecaySchedule,
)
from gpt2_ds.plan.learning_rate import learning_rate
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan

PEAK, MIN = 6e-4, 6e-5
TOKENS = 512  # of one step
WARMUP, STABLE, DECAY, TOTAL = (TOKENS * steps for steps in (10, 40, 60, 80))


def cosine(warmup: int = WARMUP, decay: int = DECAY, low: float = MIN) -> CosineSchedule:
    return CosineSchedule(
        name="cosine", total_tokens=TOTAL, warmup_tokens=warmup, decay_tokens=decay, min_lr=low
    )


def constant(warmup: int = WARMUP) -> ConstantSchedule:
    return ConstantSchedule(name="constant", total_tokens=TOTAL, warmup_tokens=warmup)


def wsd(
    warmup: int = WARMUP, stable: int = STABLE, decay: int = DECAY, low: float = MIN
) -> WarmupStableDecaySchedule:
    return WarmupStableDecaySchedule(
        name="wsd",
        total_tokens=TOTAL,
        warmup_tokens=warmup,
        stable_tokens=stable,
        decay_tokens=decay,
        min_lr=low,
    )


def rates(schedule: AnySchedule, first_step: int, last_step: int) -> list[float]:
    return [
        learning_rate(schedule, PEAK, step * TOKENS) for step in range(first_step, last_step + 1)
    ]


def torch_rates(scheduler: LRScheduler, steps: int) -> list[float]:
    """What the optimizer has before and after each of `steps` calls of the scheduler."""
    found = [scheduler.optimizer.param_groups[0]["lr"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses a call of optimizer.step
        for _ in range(steps):
            scheduler.step()
            found.append(scheduler.optimizer.param_groups[0]["lr"])
    return found


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=PEAK)


def test_the_cosine_is_torchs() -> None:
    reference = torch_rates(CosineAnnealingLR(optimizer(), T_max=50, eta_min=MIN), 50)
    assert rates(cosine(), 10, 60) == pytest.approx(reference, rel=1e-12)


@pytest.mark.parametrize("schedule", [cosine(), constant(), wsd()], ids=lambda s: s.name)
def test_the_warmup_is_torchs(schedule: AnySchedule) -> None:
    reference = torch_rates(LinearLR(optimizer(), start_factor=0.1, total_iters=9), 9)
    assert rates(schedule, 1, 10) == pytest.approx(reference, rel=1e-12)
    assert rates(schedule, 1, 1)[0] == pytest.approx(PEAK / 10)  # the first update is one


def test_wsd_is_three_lines() -> None:
    def expected(step: int) -> float:
        if step <= 10:
            return PEAK * step / 10
        if step <= 40:
            return PEAK
        return PEAK + (MIN - PEAK) * (step - 40) / 20 if step <= 60 else MIN

    assert rates(wsd(), 1, 80) == pytest.approx([expected(s) for s in range(1, 81)], rel=1e-12)


def test_constant_is_flat_after_its_warmup() -> None:
    assert rates(constant(), 10, 80) == [PEAK] * 71


@pytest.mark.parametrize("schedule", [cosine(), wsd()], ids=lambda s: s.name)
def test_flat_at_the_least_rate_after_the_decay(schedule: AnySchedule) -> None:
    assert rates(schedule, 60, 80) == [MIN] * 21
    assert rates(schedule, 59, 59)[0] > MIN


@pytest.mark.parametrize("schedule", [cosine(0), constant(0), wsd(0)], ids=lambda s: s.name)
def test_without_warmup_it_begins_near_the_peak(schedule: AnySchedule) -> None:
    first = rates(schedule, 1, 1)[0]
    assert PEAK * 0.99 < first <= PEAK


lengths = st.integers(1, 10**13)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[AnySchedule, float]:
    warmup, stable, decay = sorted(draw(st.tuples(lengths, lengths, lengths)))
    peak = draw(st.floats(1e-8, 1.0))
    low = peak * draw(st.floats(0.0, 1.0))
    kinds = [constant(warmup), cosine(warmup, decay, low), wsd(warmup, stable, decay, low)]
    return draw(st.sampled_from(kinds)), peak


@given(schedules(), st.lists(st.integers(1, 2 * 10**13), min_size=2, max_size=20))
def test_bounds_and_order(drawn: tuple[AnySchedule, float], tokens: list[int]) -> None:
    schedule, peak = drawn
    low = peak if isinstance(schedule, ConstantSchedule) else schedule.min_lr
    warmup = schedule.warmup_tokens
    rising = [learning_rate(schedule, peak, t) for t in sorted(tokens) if t < warmup]
    falling = [learning_rate(schedule, peak, t) for t in sorted(tokens) if t >= warmup]
    assert all(0 < rate <= peak for rate in rising)
    assert all(low <= rate <= peak for rate in falling)
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_the_peak_is_not_missed_by_a_rounding() -> None:
    peak, low = 0.0038717054765670844, 0.001629673155483163
    assert low + (peak - low) != peak
    assert learning_rate(cosine(low=low), peak, WARMUP) == peak
    assert learning_rate(wsd(low=low), peak, STABLE) == peak


@given(schedules())
def test_the_marks_are_met_exactly(drawn: tuple[AnySchedule, float]) -> None:
    schedule, peak = drawn
    if isinstance(schedule, ConstantSchedule):
        assert learning_rate(schedule, peak, schedule.warmup_tokens) == peak
        return
    if schedule.warmup_tokens < schedule.decay_tokens:
        assert learning_rate(schedule, peak, schedule.warmup_tokens) == peak
    if isinstance(schedule, WarmupStableDecaySchedule) and (
        schedule.stable_tokens < schedule.decay_tokens
    ):
        assert learning_rate(schedule, peak, schedule.stable_tokens) == peak
    assert learning_rate(schedule, peak, schedule.decay_tokens) == schedule.min_lr


def one_run(data: Path, run_dir: Path) -> None:
    from gpt2_ds.train.run import train

    train(small_plan(data, run_dir), small_corpus(data))


@pytest.mark.heavy
def test_a_run_follows_its_schedule(tmp_path: Path) -> None:
    run_ranks(one_run, 1, tmp_path, small_dataset(tmp_path), tmp_path / "run")
    # 256 tokens a step: two steps of warm-up, then six of a cosine from 3e-3 to 3e-4.
    falling = [3e-4 + 2.7e-3 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(7)]
    found = metrics_of(tmp_path / "run", "learning_rate")
    assert [rate for (rate,) in found] == pytest.approx([1.5e-3, *falling], rel=1e-9)
