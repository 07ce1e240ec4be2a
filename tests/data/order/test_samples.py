from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.format.split import Split
from gpt2_ds.data.order.mixture import Mixture, Phase
from gpt2_ds.data.order.permutation import rank_sample_ids
from gpt2_ds.data.order.samples import Samples
from tests.data.small_dataset import make_dataset

T = 4


def entry(number: int, tokens: int) -> ShardEntry:
    return ShardEntry(
        split="train",
        file=f"train/shard-{number:05d}.bin",
        tokens=tokens,
        documents=1,
        bytes=1024 + 2 * tokens,
        sha256=f"{number:064x}",
        block_crc32=(),
        index_sha256=None,
    )


def unread(windows: list[int]) -> Split:
    """A split whose files nobody may ask for."""

    def locate(shard: ShardEntry) -> Path:
        raise AssertionError(shard)

    return Split("train", [entry(i, n * T + 1) for i, n in enumerate(windows)], "uint16", locate)


def two_sources(lanes: int = 0) -> Samples:
    return Samples(
        [unread([20, 13, 17, 10]), unread([9, 8, 0, 12, 5])],
        seq_length=T,
        seed=5,
        lanes=lanes,
        names=("web", "books"),
        mixture=Mixture([Phase(0, (0.7, 0.3)), Phase(240, (0.2, 0.8))]),
    )


@pytest.mark.parametrize("lanes", [0, 3])
def test_each_source_has_its_own_epochs(lanes: int) -> None:
    samples = two_sources(lanes)
    source, window = samples.locate(np.arange(3000))
    for number, n in ((0, 60), (1, 34)):
        seen = window[source == number]
        whole = seen[: len(seen) // n * n].reshape(-1, n)
        assert len(whole) > 8
        assert (np.sort(whole, axis=1) == np.arange(n)).all()
    assert samples.tokens_by_source(240) == {"web": 168 * T, "books": 72 * T}
    assert samples.weights(240) == [0.7, 0.3]
    assert samples.weights(241) == [0.2, 0.8]


def test_one_source_is_ordered_as_before_there_were_several() -> None:
    one = Samples([unread([20, 13, 17])], seq_length=T, seed=5)
    source, window = one.locate(np.arange(50))
    assert not source.any()
    assert np.array_equal(np.sort(window), np.arange(50))
    assert one.tokens_by_source(100) == {}
    assert one.weights(100) == [1.0]


def test_read_gives_the_tokens_of_each_source(tmp_path: Path) -> None:
    web = make_dataset(tmp_path / "web", [np.arange(81), np.arange(100, 141)]).split("train")
    books = make_dataset(tmp_path / "books", [np.arange(200, 249)]).split("train")
    mixture = Mixture([Phase(0, (0.5, 0.5))])
    samples = Samples([web, books], seq_length=T, seed=1, names=("web", "books"), mixture=mixture)
    ids = np.arange(100)
    source, window = samples.locate(ids)
    tokens = samples.read(source, window)
    assert tokens.dtype == np.uint16
    for row in range(100):
        split = (web, books)[source[row]]
        assert (tokens[row] == split.windows(window[row : row + 1], T)[0]).all()
        assert (tokens[row] >= 200).all() == (source[row] == 1)


@settings(max_examples=40)
@given(
    sources=st.sampled_from([1, 2]),
    lanes=st.integers(0, 6),
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    node=st.integers(0, 5),
    step=st.integers(0, 40),
)
def test_upcoming_names_every_shard_that_is_read_in_the_order_of_its_next_use(
    sources: int, lanes: int, world_size: int, node: int, step: int
) -> None:
    samples = (
        two_sources(lanes)
        if sources == 2
        else Samples([unread([20, 13, 17, 10])], seq_length=T, seed=5, lanes=lanes)
    )
    batch, end = 12, 12 * 45
    ranks = [node % world_size]
    upcoming = samples.upcoming(batch * step, end, ranks, world_size)
    ids = np.concatenate(
        [rank_sample_ids(batch * s, batch, ranks[0], world_size) for s in range(step, 45)]
    )
    source, window = samples.locate(ids)
    used = [
        (s, samples.splits[s].entries[samples.splits[s].place(w, T)[0]])
        for s, w in zip(source.tolist(), window.tolist(), strict=True)
    ]
    assert len(upcoming) == len({(s, e.file) for s, e in upcoming})  # each once
    named = [(s, e.file) for s, e in upcoming]
    in_two_epochs = used[: 30 // world_size]  # within an epoch of the smaller source
    assert {(s, e.file) for s, e in in_two_epochs} <= set(named)
    if sources == 1 and lanes and world_size == 1:
        order = list(dict.fromkeys((s, e.file) for s, e in used))
        assert named[: len(order)] == order


def test_a_node_fetches_the_shards_of_its_own_lanes_only() -> None:
    """16 ranks on 4 machines, 16 lanes: a machine reads 4 of them."""
    samples = Samples([unread([100] * 64)], seq_length=T, seed=1, lanes=16)
    of_nodes = [samples.upcoming(0, 6400, range(4 * n, 4 * n + 4), 16) for n in range(4)]
    files = [[shard.file for _, shard in upcoming] for upcoming in of_nodes]
    assert [len(set(each)) for each in files] == [16] * 4
    assert len({name for each in files for name in each}) == 64
    source, window = samples.locate(rank_sample_ids(0, 6400, 5, 16))
    read = {samples.splits[0].place(w, T)[0] for w in window.tolist()}
    assert {f"train/shard-{shard:05d}.bin" for shard in read} <= set(files[1])
    assert not source.any()


def test_nothing_is_fetched_for_samples_after_the_end() -> None:
    samples = Samples([unread([100] * 8)], seq_length=T, seed=1, lanes=2)
    assert len(samples.upcoming(0, 10**6, [0], 1)) == 8
    assert len(samples.upcoming(0, 200, [0], 1)) == 2
    assert len(samples.upcoming(100, 201, [0], 1)) == 3
    assert samples.upcoming(200, 200, [0], 1) == []


@pytest.mark.parametrize("lanes", [0, 64])
def test_300_billion_tokens_start_at_once(lanes: int) -> None:
    entries = [entry(number, 2**25) for number in range(8941)]
    assert sum(each.tokens for each in entries) > 300e9
    seconds = []
    for _ in range(3):  # the best of three: the first fills caches
        split = Split("train", entries, "uint16", lambda shard: Path(shard.file))
        began = time.process_time()
        samples = Samples([split], seq_length=2048, seed=1, lanes=lanes)
        samples.locate(rank_sample_ids(512 * 1000, 512, 3, 64))
        samples.upcoming(512 * 1000, 10**9, [3], 64)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.05
    tracemalloc.start()
    samples = Samples([split], seq_length=2048, seed=1, lanes=lanes)
    samples.locate(rank_sample_ids(512 * 1000, 512, 3, 64))
    samples.upcoming(512 * 1000, 10**9, [3], 64)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
