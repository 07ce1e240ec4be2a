"""Shards behind a server, a reader that knows what comes, and an eye on the cache's folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.reading.cache_folder import CacheFolder, Order
from gpt2_ds.files.remote_files import RemoteFolder
from tests.files.fault_server import FaultServer, entry_of, serving, shard

N_SHARDS = 24
N_BYTES = 2**17
SHARDS = [shard(number, N_BYTES) for number in range(N_SHARDS)]
ENTRIES = [entry_of(f"train/{number}.bin", content) for number, content in enumerate(SHARDS)]


class Reader:
    """Goes through groups of shards, those of a group side by side, and knows what comes."""

    def __init__(self, remote: RemoteFolder, groups: Sequence[Sequence[int]]) -> None:
        self.remote, self.groups, self.position = remote, groups, 0

    def upcoming(self) -> Order:
        rest = [number for group in self.groups[self.position :] for number in group]
        return [(self.remote, ENTRIES[number]) for number in dict.fromkeys(rest)]


@contextmanager
def downloads() -> Iterator[list[int]]:
    """The bytes of each shard that this process has downloaded."""
    seen: list[int] = []
    real = CacheFolder._download

    def download(
        files: CacheFolder, remote: RemoteFolder, entry: ShardEntry, *rest: Any, **more: Any
    ) -> Any:
        outcome = real(files, remote, entry, *rest, **more)
        if outcome == "done":
            seen.append(entry.bytes)
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CacheFolder, "_download", download)
        yield seen


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The sizes of the folder, seen again and again by a thread."""
    seen: list[int] = []
    end = threading.Event()

    def sizes() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in folder.iterdir()}

    def look() -> None:
        while not end.wait(0.001):
            with suppress(FileNotFoundError):
                if (found := sizes()) == sizes():  # otherwise of two moments, mixed
                    seen.append(sum(found.values()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def shard_server() -> Iterator[FaultServer]:
    files = {f"/{entry.file}": content for entry, content in zip(ENTRIES, SHARDS, strict=True)}
    with serving(files, latency_seconds=0.01) as running:
        yield running


def shard_cache_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shard-cache"]
