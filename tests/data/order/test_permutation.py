from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.order.permutation import epoch_key, feistel, rank_sample_ids, sample_windows

WORLD_SIZES = (1, 2, 3, 4, 8)


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_feistel_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    out = feistel(np.arange(n), n, epoch_key(seed, epoch))
    assert np.array_equal(np.sort(out), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_tiny_epochs(n: int) -> None:
    windows = sample_windows(np.arange(10 * n), n, seed=0).reshape(10, n)
    assert (np.sort(windows, axis=1) == np.arange(n)).all()


def test_a_billion_windows_start_at_once_and_do_not_collide() -> None:
    n = 1_070_000_000
    ids = np.arange(10**6, dtype=np.int64) + 3 * n // 2
    started = time.process_time()
    sample_windows(ids[:512], n, seed=1)
    assert time.process_time() - started < 0.5  # 1 ms; a permutation array would take minutes
    windows = sample_windows(ids, n, seed=1)
    assert windows.min() >= 0
    assert windows.max() < n
    assert np.unique(windows).size == ids.size
    # Spread evenly: each tenth of the data is hit by a tenth of the samples.
    counts = np.bincount(windows * 10 // n, minlength=10)
    assert abs(counts - 1e5).max() < 2000


def test_permutations_look_random() -> None:
    n, epochs = 7, 2000
    windows = np.stack([feistel(np.arange(n), n, epoch_key(3, e)) for e in range(epochs)])
    for position in range(n):  # each window at each place about as often
        counts = np.bincount(windows[:, position], minlength=n)
        assert abs(counts - epochs / n).max() < 6 * (epochs / n) ** 0.5
    neighbours = feistel(np.arange(10**5), 10**5, epoch_key(3, 0))
    assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1]) < 0.02


def test_the_order_stays_the_same_forever() -> None:
    # A change here makes every resumed run see other data: never update these numbers.
    got = sample_windows(np.arange(998, 1004), n_windows=1000, seed=1234).tolist()
    assert got == [28, 851, 272, 86, 469, 453]


def test_seeds_and_epochs_differ() -> None:
    orders = {
        tuple(feistel(np.arange(64), 64, epoch_key(seed, epoch)).tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


@given(
    data=st.data(),
    n_windows=st.integers(1, 300),
    groups=st.integers(1, 4),
    steps=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_any_world_size_sees_the_same_samples_each_step(
    data: st.DataObject, n_windows: int, groups: int, steps: int, seed: int
) -> None:
    global_batch_size = 24 * groups
    seen: list[int] = []
    for step in range(steps):  # the world size may change at every step, in mid-epoch too
        world_size = data.draw(st.sampled_from(WORLD_SIZES))
        ids = [
            rank_sample_ids(step * global_batch_size, global_batch_size, rank, world_size)
            for rank in range(world_size)
        ]
        seen += np.stack(ids, axis=1).ravel().tolist()  # r + W * i: ranks side by side
    assert seen == list(range(steps * global_batch_size))
    windows = sample_windows(np.array(seen), n_windows, seed)
    for start in range(0, len(seen) - n_windows + 1, n_windows):
        assert np.array_equal(np.sort(windows[start : start + n_windows]), np.arange(n_windows))


def test_a_world_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        rank_sample_ids(0, 12, rank=0, world_size=5)
    assert str(refused.value) == (
        "world size: 5 does not divide the batch of 12 sequences a step. "
        "Use one of 1, 2, 3, 4, 6, 12 processes."
    )
