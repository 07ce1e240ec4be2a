"""What a reader of the cache meets when something goes wrong, and how the cache ends."""

from __future__ import annotations

import errno
import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.reading import cache as cache_module
from gpt2_ds.data.reading.cache import ShardCache
from gpt2_ds.data.reading.cache_folder import Order, file_name
from gpt2_ds.files.remote_files import RemoteFolder
from tests.data.reading.cached_shards import (
    ENTRIES,
    N_BYTES,
    SHARDS,
    Reader,
    shard_cache_threads,
    shard_server,
    until,
)
from tests.files.fault_server import FaultServer


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with shard_server() as running:
        yield running


@pytest.fixture
def remote(server: FaultServer) -> RemoteFolder:
    return RemoteFolder(server.address, attempts=2, first_delay_seconds=0.01)


def test_a_shard_larger_than_the_cache_is_refused(remote: RemoteFolder, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, N_BYTES - 1)
    with pytest.raises(UserError) as error:
        cache.path(remote, ENTRIES[3])
    assert str(error.value) == (
        "data.cache_gigabytes: 131071 bytes have no room for train/3.bin of 131072 bytes. "
        "Give at least 0.001, better several times that."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_reading_ahead_is_raised_to_the_reader(
    server: FaultServer,
    remote: RemoteFolder,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "REST_AFTER_FAILURE_SECONDS", 0.05)
    server.fail("/train/1.bin", "flip")
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    cache.follow(Reader(remote, [[0], [1], [2]]).upcoming)
    until(lambda: server.requests["/train/1.bin"] >= 4)  # it keeps trying
    assert re.search(
        r"^warning: reading ahead: train/1.bin of http.* sha256 .* 2 attempts\. It is retried\.$",
        capfd.readouterr().err,
        re.MULTILINE,
    )
    cache.path(remote, ENTRIES[0])
    with pytest.raises(RunError, match=r"train/1.bin of .*, at the last of 2 attempts"):
        cache.path(remote, ENTRIES[1])
    server.fail("/train/1.bin", "", times=0)
    assert cache.path(remote, ENTRIES[1]).read_bytes() == SHARDS[1]
    until((tmp_path / file_name(ENTRIES[2])).exists)
    cache.close()
    assert not list(tmp_path.glob("*.tmp"))


def test_after_a_failure_reading_ahead_rests(
    server: FaultServer, remote: RemoteFolder, tmp_path: Path
) -> None:
    server.fail("/train/0.bin", "404")
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    cache.follow(Reader(remote, [[0]]).upcoming)
    until(lambda: server.requests["/train/0.bin"] == 1)
    for _ in range(12):
        time.sleep(0.1)
    assert server.requests["/train/0.bin"] == 1
    began = time.monotonic()
    cache.close()
    assert time.monotonic() - began < 3


def test_a_mistake_in_the_order_reaches_the_reader(remote: RemoteFolder, tmp_path: Path) -> None:
    def broken() -> Order:
        raise ZeroDivisionError("no order")

    cache = ShardCache(tmp_path, 6 * N_BYTES)
    cache.path(remote, ENTRIES[0])
    cache.follow(broken)
    until(lambda: shard_cache_threads() == [])
    with pytest.raises(ZeroDivisionError, match="no order"):
        cache.path(remote, ENTRIES[0])
    cache.close()


def test_a_full_disk_is_said(
    remote: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, begin: int, n_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    with pytest.raises(
        RunError, match=r"the disk is full: 131,072 bytes are needed, and [0-9,]+ are free"
    ):
        cache.path(remote, ENTRIES[0])
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^data.cache_path: .*/file/x cannot be made \(Not a dir"):
        ShardCache(tmp_path / "file" / "x", N_BYTES)


def test_close_ends_a_stalled_download_and_may_be_called_twice(
    server: FaultServer, remote: RemoteFolder, tmp_path: Path
) -> None:
    server.fail("/train/0.bin", "stall")
    cache = ShardCache(tmp_path, 6 * N_BYTES)
    cache.follow(Reader(remote, [[0]]).upcoming)
    assert server.stalled.wait(20)
    failure: list[BaseException] = []

    def read(entry: ShardEntry) -> None:
        try:
            cache.path(remote, entry)
        except RuntimeError as error:
            failure.append(error)

    reader = threading.Thread(target=read, args=(ENTRIES[0],))
    reader.start()
    time.sleep(0.1)
    began = time.monotonic()
    cache.close()
    cache.close()
    reader.join()
    assert time.monotonic() - began < 3
    assert shard_cache_threads() == []
    assert "the ShardCache is closed" in str(failure[0])
    with pytest.raises(RuntimeError, match="the ShardCache is closed"):
        cache.path(remote, ENTRIES[1])
    with pytest.raises(RuntimeError, match="the ShardCache is closed"):
        cache.follow(tuple)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_forgotten_cache_ends_its_thread(
    server: FaultServer, remote: RemoteFolder, tmp_path: Path
) -> None:
    server.fail("/train/0.bin", "stall")

    def forget() -> None:
        cache = ShardCache(tmp_path, 6 * N_BYTES)
        order = Reader(remote, [[0]]).upcoming
        cache.follow(lambda: order() if cache.max_bytes else [])  # refers to the cache itself
        assert server.stalled.wait(20)

    forget()
    gc.collect()
    until(lambda: shard_cache_threads() == [])
