"""What stays and what goes, one call at a time: no thread, no timing."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.reading.cache_folder import CacheFolder, Order, _victims, file_name
from gpt2_ds.files.claimed_file import allocate, claimed
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.remote_source import Stopped
from tests.data.reading.cached_shards import downloads
from tests.files.fault_server import entry_of, shard

N_BYTES = 100
SHARDS = [shard(number, N_BYTES) for number in range(24)]
ENTRIES = [entry_of(f"train/{number}.bin", content) for number, content in enumerate(SHARDS)]


@pytest.fixture(scope="module")
def remote() -> RemoteFolder:
    files = fsspec.filesystem("memory")
    for number, content in enumerate(SHARDS):
        files.pipe(f"/cached/train/{number}.bin", content)
    return RemoteFolder("memory://cached", attempts=1)


def upcoming(remote: RemoteFolder, sequence: Sequence[int]) -> Order:
    return [(remote, ENTRIES[number]) for number in dict.fromkeys(sequence)]


def present(folder: Path) -> set[int]:
    by_name = {file_name(entry): number for number, entry in enumerate(ENTRIES)}
    return {by_name[path.name] for path in folder.iterdir() if path.name in by_name}


def total_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def fewest_downloads(sequence: Sequence[int], slots: int) -> int:
    """Belady's: on a miss the one used again last goes; plain and slow."""
    here: set[int] = set()
    misses = 0
    for position, wanted in enumerate(sequence):
        if wanted in here:
            continue
        misses += 1
        if len(here) == slots:
            rest = list(sequence[position:])
            here.remove(max(here, key=lambda n: rest.index(n) if n in rest else len(rest)))
        here.add(wanted)
    return misses


Sequences = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@settings(max_examples=60)
@given(sequence=Sequences, slots=st.integers(1, 5))
def test_on_demand_there_are_no_more_downloads_than_there_must_be(
    remote: RemoteFolder, sequence: list[int], slots: int
) -> None:
    with tempfile.TemporaryDirectory() as name, downloads() as downloaded:
        files = CacheFolder(Path(name), slots * N_BYTES + N_BYTES // 2)
        for position, number in enumerate(sequence):
            rest = upcoming(remote, sequence[position:])
            path = files.obtain(remote, ENTRIES[number], lambda rest=rest: rest)  # type: ignore[misc]
            assert path.read_bytes() == SHARDS[number]
            assert total_bytes(Path(name)) <= files.max_bytes
        assert len(downloaded) == fewest_downloads(sequence, slots)


@settings(max_examples=60)
@given(sequence=Sequences, slots=st.integers(2, 6))
def test_reading_ahead_never_takes_the_place_of_what_is_needed_sooner(
    remote: RemoteFolder, sequence: list[int], slots: int
) -> None:
    with tempfile.TemporaryDirectory() as name, downloads() as downloaded:
        files = CacheFolder(Path(name), slots * N_BYTES)
        for position, number in enumerate(sequence):
            order = upcoming(remote, sequence[position:])
            rest = list(dict.fromkeys(sequence[position:]))
            files.obtain(remote, ENTRIES[number], lambda order=order: order)  # type: ignore[misc]
            before = present(Path(name))
            while files.read_ahead(order):
                after = present(Path(name))
                (new,) = after - before
                assert total_bytes(Path(name)) <= files.max_bytes
                for gone in before - after:
                    assert gone not in rest or rest.index(gone) > rest.index(new)
                nearer = rest[: rest.index(new)]
                assert set(nearer) <= after  # in the order of use
                before = after
            if len(set(rest)) > 1:  # so the reader does not wait for the next one
                assert rest[1] in before
        most = fewest_downloads(sequence, max(1, slots - max(1, slots // 2)))
        assert len(downloaded) <= most + 2


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_quarter_of_the_data_in_a_known_order(
    remote: RemoteFolder, tmp_path: Path, epochs: int
) -> None:
    with downloads() as downloaded:
        files = CacheFolder(tmp_path, 6 * N_BYTES)
        sequence = list(range(24)) * epochs
        for position, number in enumerate(sequence):
            order = upcoming(remote, sequence[position:])
            while files.read_ahead(order):
                pass
            waits = len(downloaded)
            files.obtain(remote, ENTRIES[number], lambda order=order: order)  # type: ignore[misc]
            assert len(downloaded) == waits
    assert len(downloaded) >= fewest_downloads(sequence, 6)
    # Half of the room holds what is read ahead; the other half works as well as it can.
    assert len(downloaded) <= fewest_downloads(sequence, 3)
    assert fewest_downloads(sequence, 3) < len(sequence) or epochs == 1


def test_what_is_never_needed_again_goes_first_and_the_longest_unused_of_it(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    files = CacheFolder(tmp_path, 3 * N_BYTES)
    for number in (0, 1, 2, 0):
        files.obtain(remote, ENTRIES[number], tuple)
    order = upcoming(remote, [1])
    files.obtain(remote, ENTRIES[3], lambda: order)
    assert present(tmp_path) == {0, 1, 3}
    files.obtain(remote, ENTRIES[4], tuple)
    assert present(tmp_path) == {0, 3, 4}


def test_what_is_pinned_stays(remote: RemoteFolder, tmp_path: Path) -> None:
    files = CacheFolder(tmp_path, 2 * N_BYTES)
    files.obtain(remote, ENTRIES[0], tuple)
    files.pinned[file_name(ENTRIES[0])] = N_BYTES
    for number in (1, 2, 3):
        files.obtain(remote, ENTRIES[number], tuple)
    assert present(tmp_path) == {0, 3}
    while files.read_ahead(upcoming(remote, [4, 0])):
        pass
    assert present(tmp_path) == {0, 4}


def test_nothing_is_deleted_for_what_does_not_fit_all_the_same(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    large = shard(99, 3 * N_BYTES)
    fsspec.filesystem("memory").pipe("/cached/train/large.bin", large)
    entry = entry_of("train/large.bin", large)
    with downloads() as downloaded:
        files = CacheFolder(tmp_path, 4 * N_BYTES)
        for number in (0, 1, 2):
            files.obtain(remote, ENTRIES[number], tuple)
        order: Order = [*upcoming(remote, [0, 1]), (remote, entry)]
        assert not files.read_ahead(order)
        assert present(tmp_path) == {0, 1, 2}
    assert len(downloaded) == 3  # none of them again
    assert files.obtain(remote, entry, lambda: order).read_bytes() == large
    assert present(tmp_path) == {0}


def test_files_of_others_are_left_alone(remote: RemoteFolder, tmp_path: Path) -> None:
    names = ["mine.bin", "0" * 63 + ".bin", "0" * 64 + ".txt", "0" * 64]
    for name in names:
        (tmp_path / name).write_bytes(bytes(5 * N_BYTES))
    files = CacheFolder(tmp_path, N_BYTES)
    for number in (0, 1):
        files.obtain(remote, ENTRIES[number], tuple)
    assert present(tmp_path) == {1}
    assert all((tmp_path / name).exists() for name in names)


def test_shards_of_other_datasets_and_npy_files_count_too(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    old = [tmp_path / f"{'a' * 64}.bin", tmp_path / f"{'b' * 64}.npy"]
    for path in old:
        path.write_bytes(bytes(N_BYTES))
    files = CacheFolder(tmp_path, 2 * N_BYTES)
    files.obtain(remote, ENTRIES[0], tuple)
    assert [path.exists() for path in old] == [False, True]


def test_what_a_dead_process_left_makes_room(remote: RemoteFolder, tmp_path: Path) -> None:
    left = tmp_path / f"{'a' * 64}.bin.tmp"
    left.write_bytes(bytes(N_BYTES))
    files = CacheFolder(tmp_path, N_BYTES)
    files.obtain(remote, ENTRIES[0], tuple)
    assert not left.exists()
    mine = tmp_path / (file_name(ENTRIES[1]) + ".tmp")
    mine.write_bytes(bytes(7 * N_BYTES))
    files.obtain(remote, ENTRIES[1], tuple)
    assert present(tmp_path) == {1}
    assert not mine.exists()


def test_what_a_dead_process_left_of_the_same_shard_takes_no_room(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    files = CacheFolder(tmp_path, 2 * N_BYTES)
    files.obtain(remote, ENTRIES[0], tuple)
    (tmp_path / (file_name(ENTRIES[1]) + ".tmp")).write_bytes(bytes(N_BYTES))
    files.obtain(remote, ENTRIES[1], tuple)
    assert present(tmp_path) == {0, 1}


def test_what_another_process_finished_in_this_moment_is_not_downloaded_again(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    files, other = CacheFolder(tmp_path, N_BYTES), CacheFolder(tmp_path, N_BYTES)

    def upcoming_later() -> Order:
        other.obtain(remote, ENTRIES[0], tuple)
        return []

    with downloads() as downloaded:
        assert files.obtain(remote, ENTRIES[0], upcoming_later).read_bytes() == SHARDS[0]
    assert len(downloaded) == 1


def test_a_download_of_another_process_counts_at_its_full_size(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    large = shard(98, 2 * N_BYTES)
    fsspec.filesystem("memory").pipe("/cached/train/two.bin", large)
    entry = entry_of("train/two.bin", large)
    files = CacheFolder(tmp_path, 3 * N_BYTES)
    files.pinned[file_name(ENTRIES[0])] = N_BYTES
    files.obtain(remote, ENTRIES[0], tuple)
    done = threading.Event()
    with claimed(tmp_path / f"{'a' * 64}.bin.tmp") as other:
        assert other is not None
        allocate(other, tmp_path, N_BYTES)
        assert not files.read_ahead([(remote, entry)])
        thread = threading.Thread(target=lambda: (files.obtain(remote, entry, tuple), done.set()))
        thread.start()
        assert not done.wait(0.2)
        assert not files.read_ahead(upcoming(remote, [1]))  # the one who waits goes first
        assert present(tmp_path) == {0}
    thread.join()
    assert done.is_set()
    assert (tmp_path / file_name(entry)).read_bytes() == large


def test_what_another_process_downloads_is_passed_over(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    files = CacheFolder(tmp_path, 4 * N_BYTES)
    order = upcoming(remote, [0, 1])
    with claimed(tmp_path / (file_name(ENTRIES[0]) + ".tmp")):
        assert files.read_ahead(order)
        assert present(tmp_path) == {1}
        assert not files.read_ahead(order)
    assert files.read_ahead(order)
    assert present(tmp_path) == {0, 1}


def test_closing_ends_every_wait(remote: RemoteFolder, tmp_path: Path) -> None:
    files = CacheFolder(tmp_path, N_BYTES)
    entry: ShardEntry = ENTRIES[0]
    with claimed(tmp_path / (file_name(entry) + ".tmp")):
        threading.Timer(0.1, files.close).start()
        with pytest.raises(Stopped):
            files.obtain(remote, entry, tuple)
    assert not files.read_ahead(upcoming(remote, [0]))
    assert present(tmp_path) == set()


def test_a_shard_that_comes_twice_is_as_near_as_its_first_use(tmp_path: Path) -> None:
    remote = RemoteFolder("memory://nowhere")
    order = [(remote, ENTRIES[number]) for number in (0, 1, 2, 0)]  # two sources have the first
    (tmp_path / "x").write_bytes(b"x")
    there = {file_name(ENTRIES[number]): (tmp_path / "x").stat() for number in (0, 1, 2)}
    found = _victims(there, order, 1, ())
    assert found == [file_name(ENTRIES[2]), file_name(ENTRIES[1])]
