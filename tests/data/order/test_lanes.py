from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.data.order.lanes import LaneOrder
from gpt2_ds.data.order.permutation import epoch_key, feistel

Array = npt.NDArray[np.int64]
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def owners(counts: list[int], windows: Array) -> Array:
    """The shard each window is in."""
    return np.repeat(np.arange(len(counts)), counts)[windows]


@given(counts=COUNTS, lanes=st.integers(1, 20), seed=st.integers(0, 2**63))
def test_every_window_once_an_epoch(counts: list[int], lanes: int, seed: int) -> None:
    order = LaneOrder(np.array(counts), lanes, seed)
    n = sum(counts)
    assert order.n_windows == n
    windows = order.windows(np.arange(3 * n)).reshape(3, n)
    assert (np.sort(windows, axis=1) == np.arange(n)).all()


@given(counts=COUNTS, lanes=st.integers(1, 20), epoch=st.integers(0, 3), data=st.data())
def test_a_sample_does_not_depend_on_the_others_asked_for(
    counts: list[int], lanes: int, epoch: int, data: st.DataObject
) -> None:
    n = sum(counts)
    order = LaneOrder(np.array(counts), lanes, seed=3)
    whole = order.windows(np.arange(5 * n))
    some = np.array(data.draw(st.lists(st.integers(0, 5 * n - 1), min_size=1)), dtype=np.int64)
    assert (LaneOrder(np.array(counts), lanes, seed=3).windows(some) == whole[some]).all()


@given(counts=COUNTS, lanes=st.integers(1, 20), epoch=st.integers(0, 2))
def test_pieces_say_when_each_shard_is_read(counts: list[int], lanes: int, epoch: int) -> None:
    order = LaneOrder(np.array(counts), lanes, seed=4)
    n = sum(counts)
    shard = owners(counts, order.windows(epoch * n + np.arange(n)))
    lane = np.minimum(np.arange(n) % lanes, lanes)
    lane[lanes * (n // lanes) :] = lanes
    pieces = order.pieces(epoch)
    assert (np.diff(pieces.first) >= 0).all()
    covered = np.zeros(n, dtype=int)
    for first, last, in_lane, of in zip(
        pieces.first, pieces.last, pieces.lane, pieces.shard, strict=True
    ):
        reads = (lane == in_lane) & (np.arange(n) >= first) & (np.arange(n) <= last)
        assert reads[first]
        assert reads[last]
        assert (shard[reads] == of).all()
        covered += reads
    assert (covered == 1).all()
    # A border between lanes cuts a shard in two at most; what no lane has is one more.
    assert len(pieces.first) <= np.count_nonzero(counts) + lanes


def test_few_shards_are_read_at_a_time() -> None:
    """40 equal shards in 8 lanes: 8 at any time, each read to its end, in an order of its own."""
    counts = [100] * 40
    order = LaneOrder(np.array(counts), 8, seed=1)
    shard = owners(counts, order.windows(np.arange(4000))).reshape(5, 800)
    for row in shard:
        assert len(set(row.tolist())) == 8
    in_order = [list(dict.fromkeys(row.tolist())) for row in shard]
    assert in_order != sorted(in_order)
    windows = order.windows(np.arange(800))
    first = windows[shard[0] == shard[0, 0]]
    assert not (np.diff(first) == 1).all()  # shuffled inside the shard
    assert np.ptp(first) == 99


def test_epochs_seeds_and_names_differ() -> None:
    counts = np.array([16] * 4)
    seen = {
        tuple(LaneOrder(counts, 2, seed, name).windows(64 * epoch + np.arange(64)).tolist())
        for seed in range(3)
        for name in ("", "web", "books")
        for epoch in range(3)
    }
    assert len(seen) == 27


def test_pieces_are_shuffled_by_different_keys() -> None:
    counts = [50] * 10
    order = LaneOrder(np.array(counts), 1, seed=9)
    slots = order.windows(np.arange(500)).reshape(10, 50) % 50
    assert len({tuple(row.tolist()) for row in slots}) == 10


def test_the_order_stays_the_same_forever() -> None:
    # A change here makes every resumed run see other data: never update these numbers.
    order = LaneOrder(np.array([30, 50, 20]), 3, seed=1234)
    assert order.windows(np.array([0, 1, 2, 50, 99, 100, 250])).tolist() == [
        8,
        50,
        78,
        94,
        99,
        9,
        92,
    ]


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=50), seed=st.integers(0, 2**32))
def test_many_permutations_at_once_are_those_one_by_one(sizes: list[int], seed: int) -> None:
    keys = np.stack([epoch_key(seed, number) for number in range(len(sizes))], axis=1)
    positions = np.array([size // 2 for size in sizes], dtype=np.int64)
    together = feistel(positions, np.array(sizes, dtype=np.int64), keys)
    alone = [feistel(positions[i : i + 1], size, keys[:, i])[0] for i, size in enumerate(sizes)]
    assert together.tolist() == alone


@pytest.mark.parametrize("n", [1, 4, 5, 16, 17, 4**30, 4**30 + 1, 2**62])
def test_the_network_is_the_smallest_that_holds_n(n: int) -> None:
    out = feistel(np.array([0, n - 1, n // 2]), n, epoch_key(0, 0))
    assert ((out >= 0) & (out < n)).all()
    assert len(set(out.tolist())) == len({0, n - 1, n // 2})
