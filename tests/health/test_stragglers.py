"""A slow rank is named once, soon, and noise names nobody."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.health.stragglers import Stragglers, stragglers
from gpt2_ds.hosts.launcher import rank
from tests.ranks import run_ranks


@pytest.mark.parametrize(
    "seconds, slow",
    [
        ([1.0], []),
        ([0.01, 0.21], [1]),
        ([0.21, 0.01], [0]),
        ([0.01, 0.059], []),  # not by 0.05 s
        ([0.01, 0.061], [1]),
        ([0.4, 0.49, 0.4], []),  # not by 25 %
        ([0.4, 0.51, 0.4], [1]),
        ([4.0, 4.14, 4.0], []),  # not by 0.15 s
        ([4.0, 4.16, 4.0], [1]),
        ([20.0, 20.5, 20.0], []),  # not by 3 %
        ([20.0, 20.7, 20.0], [1]),
        ([5.0, 5.0, 0.0, 5.0], []),  # a fast one makes nobody slow
        ([1.0, 1.0, 2.0, 2.0, 1.0], [2, 3]),
        ([1.0, 1.0, 2.0, 2.0], [2, 3]),  # the lower of the two in the middle
    ],
)
def test_who_is_slow(seconds: list[float], slow: list[int]) -> None:
    assert stragglers(seconds) == slow


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_never_the_faster_half(seconds: list[float]) -> None:
    slow = stragglers(seconds)
    faster = [own for one, own in enumerate(seconds) if one not in slow]
    assert len(faster) * 2 >= len(seconds)
    assert all(seconds[i] > own for i in slow for own in faster)


@given(st.integers(0, 2**32), st.floats(0.001, 100.0))
def test_noise_names_nobody(seed: int, seconds: float) -> None:
    draw = random.Random(seed)
    noise = 0.1 if seconds < 0.6 else 0.013
    noisy = [seconds * draw.uniform(1 - noise, 1 + noise) for _ in range(16)]
    assert stragglers(noisy) == []


def test_it_is_told_once_until_it_recovers() -> None:
    ranks = Stragglers(["a", "b", "c"])
    slow, well = [0.05, 0.05, 0.26], [0.05, 0.05, 0.05]
    sentence = "rank 2 on c takes 0.21 s a step longer than the median rank (0.05 s)"
    assert ranks._compare(slow) == [sentence]
    assert ranks._compare(slow) == []
    both = ranks._compare([0.05, 0.36, 0.26, 0.05][:3])
    assert both == ["rank 1 on b takes 0.10 s a step longer than the median rank (0.26 s)"]
    assert ranks._compare(well) == []
    assert ranks._compare(slow) == [sentence]


def _named_after(world_size: int, own: list[list[float]]) -> list[list[str]]:
    """The sentences of each call of names(); a call after every ten steps."""
    ranks = Stragglers([f"host{i}" for i in range(world_size)])
    told = []
    for step, seconds in enumerate(own[rank()], start=1):
        ranks.add(seconds)
        if step % 10 == 0:
            told.append(ranks.names())
    told.append(ranks.names())  # without a step
    return told


@pytest.mark.heavy
def test_two_ranks_agree_on_who_is_slow(tmp_path: Path) -> None:
    pause = [0.02] * 4 + [1.5] + [0.02] * 5  # once: not slow
    often = [0.02, 0.02, 0.02, 2.0] * 5
    own = [
        [0.02] * 10 + [0.02] * 15 + [0.22] * 25 + [0.02] * 20,
        pause + [0.02] * 20 + [0.02] * 20 + often,
    ]
    zero, one = run_ranks(_named_after, 2, tmp_path, 2, own)
    assert zero == one
    assert zero[:3] == [
        [],
        [],
        ["rank 0 on host0 takes 0.09 s a step longer than the median rank (0.02 s)"],
    ]
    assert zero[3:5] == [[], []]
    assert zero[5] == ["rank 1 on host1 takes 0.22 s a step longer than the median rank (0.02 s)"]
    assert zero[6:] == [[], []]


@pytest.mark.benchmark
def test_adding_costs_little() -> None:
    ranks = Stragglers(["a"])
    began = time.perf_counter()
    for _ in range(10_000):
        ranks.add(0.1)
    assert (time.perf_counter() - began) / 10_000 < 5e-6
