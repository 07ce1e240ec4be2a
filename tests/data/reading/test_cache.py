from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.reading.cache import ShardCache
from gpt2_ds.data.reading.cache_folder import file_name
from gpt2_ds.files.remote_files import RemoteFolder
from tests.data.reading.cached_shards import (
    ENTRIES,
    N_BYTES,
    N_SHARDS,
    SHARDS,
    Reader,
    downloads,
    shard_server,
    until,
    watched,
)
from tests.files.fault_server import FaultServer, entry_of, serving, shard


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with shard_server() as running:
        yield running


@pytest.fixture
def remote(server: FaultServer) -> RemoteFolder:
    return RemoteFolder(server.address, attempts=2, first_delay_seconds=0.01)


@pytest.mark.parametrize("lanes", [1, 4])
def test_every_byte_is_right_and_a_shard_comes_once(
    server: FaultServer, remote: RemoteFolder, tmp_path: Path, lanes: int
) -> None:
    groups = [range(first, first + lanes) for first in range(0, N_SHARDS, lanes)]
    reader = Reader(remote, groups)
    with watched(tmp_path) as sizes, downloads() as downloaded:
        cache = ShardCache(tmp_path, 6 * N_BYTES + 1)
        cache.follow(reader.upcoming)
        for reader.position, group in enumerate(groups):
            for number in group:
                assert cache.path(remote, ENTRIES[number]).read_bytes() == SHARDS[number]
        cache.close()
    assert set(server.requests.values()) == {1}
    assert len(server.requests) == N_SHARDS
    assert downloaded == N_SHARDS * [N_BYTES]
    assert len(list(tmp_path.glob("*.bin"))) == 6
    assert max(sizes) <= 6 * N_BYTES + 1
    assert max(sizes) > 5 * N_BYTES


def test_the_reader_does_not_wait_for_what_was_read_ahead(
    server: FaultServer, remote: RemoteFolder, tmp_path: Path
) -> None:
    reader = Reader(remote, [[number] for number in range(N_SHARDS)])
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    cache.follow(reader.upcoming)
    until(lambda: len(list(tmp_path.glob("*.bin"))) == 6)
    time.sleep(0.1)
    assert sum(server.requests.values()) == 6  # and it waits for the reader
    waited = 0.0
    for reader.position in range(N_SHARDS):
        number = reader.position
        until((tmp_path / file_name(ENTRIES[number])).exists)
        began = time.monotonic()
        cache.path(remote, ENTRIES[number])
        assert time.monotonic() - began < 0.5
        waited += time.monotonic() - began
    assert set(server.requests.values()) == {1}
    assert len(server.requests) == N_SHARDS
    assert waited < 2
    cache.close()


def test_what_is_asked_for_in_the_middle_of_its_download_is_waited_for(
    server: FaultServer, remote: RemoteFolder, tmp_path: Path
) -> None:
    server.latency_seconds = 0.4
    reader = Reader(remote, [[0]])
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    cache.follow(reader.upcoming)
    until(lambda: server.requests["/train/0.bin"] == 1)
    began = time.monotonic()
    assert cache.path(remote, ENTRIES[0]).read_bytes() == SHARDS[0]
    assert server.requests["/train/0.bin"] == 1
    assert 0.1 < time.monotonic() - began < 5
    cache.close()


def test_what_is_asked_for_goes_before_what_is_read_ahead(
    server: FaultServer, remote: RemoteFolder, tmp_path: Path
) -> None:
    server.fail("/train/0.bin", "stall", times=1)
    reader = Reader(remote, [[0], [1], [2]])
    cache = ShardCache(tmp_path, N_BYTES)
    cache.follow(reader.upcoming)
    assert server.stalled.wait(20)
    reader.position = 1
    began = time.monotonic()
    assert cache.path(remote, ENTRIES[1]).read_bytes() == SHARDS[1]  # in the room of 0
    assert time.monotonic() - began < 20
    reader.position = 2
    until((tmp_path / file_name(ENTRIES[2])).exists)  # and the thread continues
    cache.close()


def test_a_new_order_replaces_the_one_before(remote: RemoteFolder, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    cache.follow(Reader(remote, [[0]]).upcoming)
    until((tmp_path / file_name(ENTRIES[0])).exists)
    threads = threading.active_count()
    cache.follow(Reader(remote, [[1]]).upcoming)
    until((tmp_path / file_name(ENTRIES[1])).exists)
    assert threading.active_count() == threads
    cache.close()


def test_a_file_from_before_is_checked_once_and_replaced_if_damaged(
    server: FaultServer,
    remote: RemoteFolder,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = ShardCache(tmp_path, 6 * N_BYTES)
    path = first.path(remote, ENTRIES[0])
    assert ShardCache(tmp_path, 6 * N_BYTES).path(remote, ENTRIES[0]) == path
    assert server.requests["/train/0.bin"] == 1

    damaged = bytearray(SHARDS[0])
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    assert cache.path(remote, ENTRIES[0]).read_bytes() == SHARDS[0]
    assert server.requests["/train/0.bin"] == 2
    wrong = hashlib.sha256(damaged).hexdigest()
    assert capfd.readouterr().err == (
        f"warning: {path}: damaged: sha256 {wrong}; deleted, and downloaded again: train/0.bin\n"
    )

    path.write_bytes(SHARDS[0])  # as another process would have done
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: hashed.append(1) or digest(file, kind)
    )
    for _ in range(3):
        cache.path(remote, ENTRIES[0])
    assert len(hashed) == 1


def test_a_deleted_file_stays_readable_where_it_is_mapped(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path, N_BYTES)
    path = cache.path(remote, ENTRIES[0])
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    cache.path(remote, ENTRIES[1])
    assert not path.exists()
    assert mapped.tobytes() == SHARDS[0]


def test_kept_shards_stay_and_must_fit_together(remote: RemoteFolder, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * N_BYTES)
    kept = [cache.keep(remote, ENTRIES[number]) for number in (0, 1, 0)]
    for number in (2, 3, 4):
        cache.path(remote, ENTRIES[number])
    assert [path.read_bytes() for path in kept] == [SHARDS[0], SHARDS[1], SHARDS[0]]
    cache.keep(remote, ENTRIES[4])
    with pytest.raises(UserError, match=r"train/5.bin of 131072 bytes beside 393216 bytes of val"):
        cache.path(remote, ENTRIES[5])
    with pytest.raises(UserError, match="beside 393216 bytes"):
        cache.keep(remote, ENTRIES[5])
    assert cache.path(remote, ENTRIES[0]).read_bytes() == SHARDS[0]


@pytest.mark.benchmark
def test_twenty_million_tokens_a_second_through_a_quarter_of_the_data(tmp_path: Path) -> None:
    shards = [shard(number, 2**22) for number in range(24)]
    entries = [entry_of(f"{number}.bin", content) for number, content in enumerate(shards)]
    with serving({f"/{e.file}": c for e, c in zip(entries, shards, strict=True)}, 0.01) as server:
        remote = RemoteFolder(server.address)
        left = list(entries)
        cache = ShardCache(tmp_path, 6 * 2**22)
        began = time.monotonic()
        cache.follow(lambda: [(remote, entry) for entry in tuple(left)])
        total = 0
        for entry in entries:
            left[:] = entries[entries.index(entry) :]
            tokens = np.fromfile(cache.path(remote, entry), dtype=np.uint16)
            total += len(tokens.astype(np.int64))
        seconds = time.monotonic() - began
        cache.close()
    assert set(server.requests.values()) == {1}
    assert len(server.requests) == 24
    assert total / seconds > 20e6, f"{total / seconds / 1e6:.1f} M tokens a second"
