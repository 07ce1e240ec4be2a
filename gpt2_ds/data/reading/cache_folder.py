"""The files of a shard cache: complete, checked, and together never above a limit.

A shard is a file named by its sha256. Its download goes to a claimed temporary file, which takes
its full size at once. Room is made under one lock, by deleting the shard whose next use is
farthest. A deleted file stays readable where it is mapped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Literal

from gpt2_ds.config.errors import warn
from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.files.claimed_file import TEMPORARY_SUFFIX, allocate, claimed
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.remote_source import Stopped
from gpt2_ds.files.trouble import writing

Order = Sequence[tuple[RemoteFolder, ShardEntry]]
LOCK_FILE = "room.lock"
# Of the room, for shards read ahead in the place of ones that will be needed again. A larger share
# would mean more downloads: it is room for shards that could be kept for their next use.
AHEAD_SHARE = 0.5
POLL_SECONDS = 0.01
_SHARD_FILE = re.compile(r"[0-9a-f]{64}\.(bin|npy)(\.tmp)?")
_NEVER = sys.maxsize

Outcome = Literal["done", "busy", "full"]


def file_name(entry: ShardEntry) -> str:
    """What the shard is called in the folder: the same content is the same file."""
    return f"{entry.sha256}.{entry.file.rpartition('.')[2]}"


class CacheFolder:
    """The folder, as one of the processes that share it sees it.

    Args:
        folder: on a local disk.
        max_bytes: of all shards in it, those being downloaded included.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.pinned: dict[str, int] = {}  # name -> bytes
        self._lock = threading.Lock()
        self._checked: dict[str, tuple[int, ...]] = {}  # name -> identity of the right file
        self._asked: set[str] = set()
        self._short_of_room = 0
        self._give_way = threading.Event()
        self.closed = threading.Event()

    def close(self) -> None:
        """End every wait and every download."""
        self.closed.set()
        self._give_way.set()

    def obtain(
        self, remote: RemoteFolder, entry: ShardEntry, upcoming: Callable[[], Order]
    ) -> Path:
        """The file of a shard, downloaded if need be: at once, and before anything read ahead.

        Raises:
            UserError: the shard is not at its address, or access is refused.
            RunError: it could not be downloaded, or the disk is full.
            Stopped: the cache was closed.
        """
        path = self.folder / file_name(entry)
        short = False
        try:
            while not self._is_right(entry):
                outcome = self._download(remote, entry, upcoming(), self.closed, limit=0)
                if outcome == "full" and not short:
                    short = True
                    self._want_room(1)
                if outcome != "done" and self.closed.wait(POLL_SECONDS):
                    raise Stopped
        finally:
            if short:
                self._want_room(-1)
        self._asked.add(path.name)
        with suppress(OSError):  # deleted in this moment, or another user's
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    def read_ahead(self, order: Order) -> bool:
        """Download the shard that is needed next and is not here.

        Args:
            order: shards by their next use.

        Returns:
            Whether there may be more to do now.

        Raises:
            UserError: as for `obtain`.
            RunError: as for `obtain`.
        """
        self._give_way.clear()
        # Looked at after clearing: both set it again.
        if self._short_of_room or self.closed.is_set():
            return False
        present = {path.name for path in self.folder.iterdir()}
        self._asked &= present
        ahead_bytes = 0
        for position, (remote, entry) in enumerate(order):
            name = file_name(entry)
            if name in present:
                ahead_bytes += entry.bytes if name not in self._asked else 0
                continue
            costs = ahead_bytes and ahead_bytes + entry.bytes > self.max_bytes * AHEAD_SHARE
            limit = _NEVER if costs else position + 1
            try:
                outcome = self._download(remote, entry, order, self._give_way, limit)
            except Stopped:
                return False
            if outcome != "busy":
                return outcome == "done"
        return False

    def _is_right(self, entry: ShardEntry) -> bool:
        """Whether the shard is here; one that this process has not checked yet is hashed."""
        name = file_name(entry)
        path = self.folder / name
        try:
            with path.open("rb") as file:
                identity = _identity(file.fileno())
                if self._checked.get(name) == identity:
                    return True
                got = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        if got == entry.sha256:
            self._checked[name] = identity
            return True
        warn(f"{path}: damaged: sha256 {got}; deleted, and downloaded again: {entry.file}")
        path.unlink(missing_ok=True)
        return False

    def _download(
        self,
        remote: RemoteFolder,
        entry: ShardEntry,
        order: Order,
        stop: threading.Event,
        limit: int,
    ) -> Outcome:
        path = self.folder / file_name(entry)
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with claimed(temporary) as file:
            if file is None or path.exists():
                return "busy"
            if not self._make_room(file, temporary, entry.bytes, order, limit):
                return "full"
            remote.download_into(file, temporary, entry.file, entry.bytes, entry.sha256, stop)
            # Not synced: after a crash of the machine, its hash is checked before it is used.
            self._checked[path.name] = _identity(file.fileno())
            # Under the lock: a process that counts the files in this moment would miss this one.
            with self._room_lock(), writing(path, entry.bytes):
                temporary.rename(path)
        return "done"

    def _make_room(
        self, file: FileIO, temporary: Path, n_bytes: int, order: Order, limit: int
    ) -> bool:
        """Make room for a download: delete shards that are next used at `limit` or later."""
        with self._room_lock():
            shards = self._shards(besides=temporary.name)
            needed = sum(shard.st_size for shard in shards.values()) + n_bytes - self.max_bytes
            victims = _victims(shards, order, limit, self.pinned) if needed > 0 else []
            if sum(shards[name].st_size for name in victims) < needed:
                return False
            for name in victims:
                if needed <= 0:
                    break
                (self.folder / name).unlink(missing_ok=True)
                needed -= shards[name].st_size
            allocate(file, temporary, n_bytes)
        return True

    def _shards(self, besides: str) -> dict[str, os.stat_result]:
        """Name -> status of each shard; what dead processes left is deleted."""
        shards = {}
        for path in self.folder.iterdir():
            if path.name == besides or not _SHARD_FILE.fullmatch(path.name):
                continue
            if path.suffix == TEMPORARY_SUFFIX:
                with claimed(path):  # deletes it, if nobody else has claimed it
                    pass
            with suppress(FileNotFoundError):
                shards[path.name] = path.stat()
        return shards

    def _want_room(self, more: int) -> None:
        with self._lock:
            self._short_of_room += more
        self._give_way.set()

    @contextmanager
    def _room_lock(self) -> Iterator[None]:
        path = self.folder / LOCK_FILE
        with writing(path, 0):
            file = path.open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _identity(descriptor: int) -> tuple[int, ...]:
    """Changes whenever another file takes the name, or the content is written again."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _victims(
    shards: dict[str, os.stat_result], order: Order, limit: int, pinned: Container[str]
) -> list[str]:
    """What may be deleted, in this order: farthest next use, then longest unused."""
    # Two sources may hold the same shard: the first use counts.
    uses = reversed(list(enumerate(order)))
    next_use = {file_name(entry): position for position, (_, entry) in uses}
    found = [
        (-next_use.get(name, _NEVER), status.st_atime_ns, name)
        for name, status in shards.items()
        if next_use.get(name, _NEVER) >= limit
        and name not in pinned
        and not name.endswith(TEMPORARY_SUFFIX)
    ]
    return [name for *_, name in sorted(found)]
