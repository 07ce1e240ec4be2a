from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.data.order.mixture import PERIOD, Mixture, Phase, places

WEIGHTS = st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1)
N = 30_000


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    starts = sorted(draw(st.sets(st.integers(1, N - 1), max_size=3)))
    return Mixture([Phase(start, tuple(draw(WEIGHTS))) for start in (0, *starts)])


@settings(max_examples=50)
@given(mixture=mixtures(), samples_seen=st.integers(0, N))
def test_each_source_is_gone_through_in_order(mixture: Mixture, samples_seen: int) -> None:
    ids = np.arange(N)
    source, index = mixture.locate(ids)
    for number in range(3):
        mine = source == number
        assert (index[mine] == np.arange(mine.sum())).all()
        assert (mixture.sample_of(number, index[mine]) == ids[mine]).all()
    counted = np.bincount(source[:samples_seen], minlength=3)
    assert mixture.counts(samples_seen).tolist() == counted.tolist()


@settings(max_examples=50)
@given(weights=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=8))
def test_each_source_keeps_its_share_all_the_time(weights: list[float]) -> None:
    source, _ = Mixture([Phase(0, tuple(weights))]).locate(np.arange(2 * PERIOD))
    n = np.arange(1, 2 * PERIOD + 1)
    for number, weight in enumerate(weights):
        given_so_far = np.cumsum(source == number)
        # The share is kept to 1 in 10,000, and the places spread so that none runs ahead.
        exact = n * weight / sum(weights)
        assert abs(given_so_far - exact).max() <= len(weights) + 2 * PERIOD / 10_000


@given(weights=WEIGHTS)
def test_places_are_the_rounded_shares(weights: list[float]) -> None:
    counts = places(weights)
    assert counts.sum() == PERIOD
    assert abs(counts - np.array(weights) / sum(weights) * PERIOD).max() < 1 + 1e-6


def test_shares_of_four_decimals_are_exact() -> None:
    assert places([0.8212, 0.1, 0.0788]).tolist() == [8212, 1000, 788]
    assert places([82.12, 10, 7.88]).tolist() == [8212, 1000, 788]


def test_a_phase_continues_where_the_one_before_stopped() -> None:
    mixture = Mixture([Phase(0, (1.0, 1.0)), Phase(100, (0.0, 1.0)), Phase(200, (1.0, 0.0))])
    source, index = mixture.locate(np.array([99, 100, 199, 200, 10**6]))
    assert source.tolist() == [1, 1, 1, 0, 0]
    assert index.tolist() == [49, 50, 149, 50, 50 + 10**6 - 200]
    assert mixture.weights(99) == (1.0, 1.0)
    assert mixture.weights(100) == (0.0, 1.0)
    assert mixture.weights(10**9) == (1.0, 0.0)
    assert mixture.sample_of(1, np.array([149, 150])).tolist() == [199, 2**62]


def test_the_places_stay_the_same_forever() -> None:
    # A change here makes every resumed run see other data: never update these numbers.
    source, index = Mixture([Phase(0, (0.5, 0.3, 0.2))]).locate(np.arange(9995, 10_007))
    assert source.tolist() == [1, 0, 2, 1, 0, 0, 1, 2, 0, 0, 1, 0]
    assert index.tolist() == [
        2998,
        4998,
        1999,
        2999,
        4999,
        5000,
        3000,
        2000,
        5001,
        5002,
        3001,
        5003,
    ]


@pytest.mark.parametrize("n", [1, 2, 20])
def test_many_sources(n: int) -> None:
    source, _ = Mixture([Phase(0, (1.0,) * n)]).locate(np.arange(PERIOD))
    counts = np.bincount(source, minlength=n)
    assert counts.max() - counts.min() <= 1
