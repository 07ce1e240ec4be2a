"""Skipped samples are never read, and all others keep their order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.order.mixture import Mixture, Phase
from gpt2_ds.data.order.permutation import rank_sample_ids
from gpt2_ds.data.order.samples import Samples
from gpt2_ds.data.order.skipped import SKIPPED_FILE, Skipped, merged, read_skipped
from tests.data.order.test_samples import T, unread

MANY = 400

some_ranges = st.lists(
    st.tuples(st.integers(0, 150), st.integers(1, 25)).map(lambda r: (r[0], r[0] + r[1])),
    max_size=6,
)


def not_skipped(ranges: list[tuple[int, int]]) -> list[int]:
    """All samples that are trained on, one by one."""
    return [n for n in range(MANY) if not any(first <= n < end for first, end in ranges)]


@given(some_ranges)
def test_positions_go_through_all_samples_that_are_not_skipped(
    ranges: list[tuple[int, int]],
) -> None:
    expected = not_skipped(ranges)[:200]
    skipped = Skipped(ranges)
    assert skipped.samples(np.arange(200)).tolist() == expected
    assert [skipped.sample(n) for n in range(200)] == expected
    for n in (0, 7, 60, 199):
        ends = {end for _, end in skipped.before(n)}
        assert ends == {end for _, end in merged(ranges) if end <= expected[n]}


@given(some_ranges, st.integers(0, 199), st.integers(0, 60))
def test_shifts_are_those_that_occur(
    ranges: list[tuple[int, int]], start: int, length: int
) -> None:
    end = min(200, start + length)
    seen = {number - n for n, number in list(enumerate(not_skipped(ranges)))[start:end]}
    shifts = Skipped(ranges).shifts(start, end)
    assert seen <= set(shifts)
    if seen:
        assert set(shifts) == seen


@given(some_ranges)
def test_merged_ranges_hold_the_same_samples(ranges: list[tuple[int, int]]) -> None:
    found = merged(ranges)
    assert not_skipped(list(found)) == not_skipped(ranges)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


@given(some_ranges, st.integers(0, 100), st.integers(1, 30))
def test_what_was_trained_on_before_a_new_range_stays(
    ranges: list[tuple[int, int]], seen: int, length: int
) -> None:
    before = Skipped(ranges)
    now = before.sample(seen)
    after = Skipped([*ranges, (now, now + length)])
    assert np.array_equal(after.samples(np.arange(seen)), before.samples(np.arange(seen)))
    assert after.sample(seen) >= now + length


def sources(lanes: int, skipped: list[tuple[int, int]]) -> Samples:
    return Samples(
        [unread([20, 13, 17, 10]), unread([9, 8, 0, 12, 5])],
        seq_length=T,
        seed=5,
        lanes=lanes,
        names=("web", "books"),
        mixture=Mixture([Phase(0, (0.7, 0.3)), Phase(120, (0.2, 0.8))]),
        skipped=skipped,
    )


@settings(max_examples=40)
@given(some_ranges, st.sampled_from([0, 3]))
def test_a_run_reads_the_samples_that_are_left(ranges: list[tuple[int, int]], lanes: int) -> None:
    plain, samples = sources(lanes, []), sources(lanes, ranges)
    left = np.array(not_skipped(ranges)[:200])
    read, expected = samples.locate(np.arange(200)), plain.locate(left)
    assert np.array_equal(read, expected)
    for n in (0, 1, 55, 200):
        of_web = int(np.count_nonzero(expected[0][:n] == 0))
        tokens = {"web": of_web * T, "books": (n - of_web) * T}
        assert samples.tokens_by_source(n) == tokens


@settings(max_examples=60)
@given(
    ranges=some_ranges,
    several=st.booleans(),
    lanes=st.integers(0, 6),
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    node=st.integers(0, 5),
    step=st.integers(0, 12),
)
def test_upcoming_names_every_shard_that_is_read(
    ranges: list[tuple[int, int]],
    several: bool,
    lanes: int,
    world_size: int,
    node: int,
    step: int,
) -> None:
    if several:
        samples = sources(lanes, ranges)
    else:
        split = unread([20, 13, 17, 10])
        samples = Samples([split], seq_length=T, seed=5, lanes=lanes, skipped=ranges)
    batch, steps = 12, 17
    ranks = [node % world_size]
    positions = np.concatenate(
        [rank_sample_ids(batch * s, batch, ranks[0], world_size) for s in range(step, steps)]
    )
    # It looks an epoch ahead, of the smaller source.
    numbers = samples.skipped.samples(positions)
    positions = positions[numbers < numbers[0] + 30]
    named = {
        (source, entry.file)
        for source, entry in samples.upcoming(batch * step, batch * steps, ranks, world_size)
    }
    for source, window in zip(*samples.locate(positions), strict=True):
        split = samples.splits[source]
        assert (source, split.entries[split.place(int(window), T)[0]].file) in named


def test_where_nothing_moves_no_other_lanes_are_fetched() -> None:
    """16 ranks on 4 machines, 16 lanes; what is skipped is a whole number of 16 samples."""

    def files(skipped: list[tuple[int, int]]) -> int:
        samples = Samples([unread([100] * 64)], seq_length=T, seed=1, lanes=16, skipped=skipped)
        return len(samples.upcoming(0, 6000, range(4), 16))

    assert files([]) == files([(32, 64)]) == files([(1600, 1616)]) == 16
    assert files([(6300, 6301)]) == 16  # behind the end
    assert files([(32, 33)]) > 16


def test_a_phase_begins_at_its_sample() -> None:
    samples = sources(0, [(10, 100)])
    assert [samples.weights(n) for n in (0, 30, 31)] == [[0.7, 0.3], [0.7, 0.3], [0.2, 0.8]]


def test_the_samples_of_a_step() -> None:
    samples = sources(0, [(20, 30)])
    assert [samples.numbers(8 * step, 8 * step + 8) for step in range(4)] == [
        (0, 8),
        (8, 16),
        (16, 34),
        (34, 42),
    ]


def test_what_is_skipped_is_read_from_the_run(tmp_path: Path) -> None:
    assert read_skipped(tmp_path) == ()
    (tmp_path / SKIPPED_FILE).write_text("[[16, 24], [20, 30], [3, 4]]")
    assert read_skipped(tmp_path) == ((3, 4), (16, 30))


@pytest.mark.parametrize("text", ["", "{", "7", "[1]", "[[1]]", "[[1, 2, 3]]", '[["a", 2]]'])
def test_a_broken_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / SKIPPED_FILE).write_text(text)
    with pytest.raises(UserError) as refused:
        read_skipped(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}/skipped_samples.json: is not a list of ranges of samples ([[first, one behind "
        "the last], ...]). Restore a copy; without it the run would train on the skipped samples."
    )
