"""Remote shards on the local disk: a bounded cache that the processes of a machine share.

What comes next is known, so shards are downloaded ahead in that order, and the one whose next use
is farthest makes room. Each rank deletes by its own position, which works well while the ranks of a
machine are about equally far. Ranks far apart would delete what the others need, and download it
again; what they read would be right all the same.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from gpt2_ds.config.errors import RunError, UserError, user_error, warn
from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.reading.cache_folder import CacheFolder, Order, file_name
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.remote_source import Stopped

POSITION_POLL_SECONDS = 0.05
# Looking through a folder of many thousand shards takes a while, and other processes wait for it.
REST_PER_LOOK, LONGEST_REST_SECONDS = 20.0, 1.0
REST_AFTER_FAILURE_SECONDS = 10.0
# A download through a library that cannot be interrupted ends with the process.
CLOSE_WAIT_SECONDS = 5.0
_KEY = "data.cache_gigabytes"


class ShardCache:
    """Shards of remote datasets in one local folder, downloaded once a machine.

    Each process makes its own `ShardCache` on the same folder. The folder must be on a local
    disk: the locks are the kernel's. Only files named by a sha256 are counted and deleted.

    Args:
        folder: made if need be.
        max_bytes: of all shards in it, those being downloaded included. A deleted shard that is
            still mapped keeps its place on the disk beyond that.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise user_error(
                "data.cache_path",
                f"{folder} cannot be made ({error.strerror})",
                "Name a folder on a local disk.",
            ) from error
        self.folder = folder
        self.max_bytes = max_bytes
        self._files = CacheFolder(folder, max_bytes)
        self._upcoming: Callable[[], Order] | None = None
        self._reader_ahead = _ReaderAhead(self._files)
        # Runs at close(), or when the cache is forgotten.
        self._close = weakref.finalize(self, self._reader_ahead.end)
        # When the interpreter ends, fsspec closes the connections by finalizers that run before
        # ours, and a download in the thread would take that for a failure: so it ends earlier.
        atexit.register(self._reader_ahead.end)

    def path(self, remote: RemoteFolder, entry: ShardEntry) -> Path:
        """The file of a shard on this machine, downloaded first if need be.

        Open it at once. If another process has deleted it by then, call this again.

        Raises:
            UserError: the shard cannot fit, is not at its address, or access is refused.
            RunError: it could not be downloaded, or the disk is full.
            RuntimeError: the cache is closed.
            Exception: whatever `upcoming` of `follow` raised.
        """
        self._require_room(entry)
        try:
            if self._reader_ahead.failure is not None:
                raise self._reader_ahead.failure
            if self._files.closed.is_set():
                raise Stopped
            return self._files.obtain(remote, entry, self._upcoming or tuple)
        except Stopped:
            raise RuntimeError("the ShardCache is closed") from None

    def keep(self, remote: RemoteFolder, entry: ShardEntry) -> Path:
        """Download a shard, and never delete it from this process.

        Raises:
            UserError: as for `path`; all that is kept must fit together.
            RunError: as for `path`.
            RuntimeError: the cache is closed.
        """
        self._require_room(entry)
        self._files.pinned[file_name(entry)] = entry.bytes
        return self.path(remote, entry)

    def follow(self, upcoming: Callable[[], Order]) -> None:
        """Read ahead of a reader, from a thread; a second call replaces `upcoming`.

        Args:
            upcoming: gives the shards by their next use from the reader's position on, each once,
                those in use now first. Other shards are never needed again. It is called from the
                thread and inside `path`, so it must not wait for a lock that is held while `path`
                is called.

        Raises:
            RuntimeError: the cache is closed.
        """
        if self._files.closed.is_set():
            raise RuntimeError("the ShardCache is closed")
        self._upcoming = upcoming
        self._reader_ahead.start(weakref.ref(self))

    def close(self) -> None:
        """End the thread, and every download and wait; may be called twice. The files stay."""
        self._close()

    def _require_room(self, entry: ShardEntry) -> None:
        name = file_name(entry)
        kept = sum(n for kept_name, n in list(self._files.pinned.items()) if kept_name != name)
        if kept + entry.bytes > self.max_bytes:
            besides = f" beside {kept} bytes of validation shards" if kept else ""
            enough = math.ceil((kept + entry.bytes) / 1e6) / 1e3
            raise user_error(
                _KEY,
                f"{self.max_bytes} bytes have no room for {entry.file} of {entry.bytes} bytes"
                f"{besides}",
                f"Give at least {enough}, better several times that.",
            )


class _ReaderAhead:
    """The thread. Refers to the cache only weakly, so that a forgotten one is collected."""

    def __init__(self, files: CacheFolder) -> None:
        self.failure: Exception | None = None
        self._files = files
        self._thread: threading.Thread | None = None

    def start(self, cache: weakref.ref[ShardCache]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(cache,), name="shard-cache", daemon=True
            )
            self._thread.start()

    def end(self) -> None:
        atexit.unregister(self.end)
        self._files.close()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join(CLOSE_WAIT_SECONDS)

    def _run(self, cache: weakref.ref[ShardCache]) -> None:
        while not self._files.closed.is_set():
            began = time.monotonic()
            try:
                order = _order_of(cache)
                if order is None:
                    return
                if self._files.read_ahead(order):
                    continue
            except (RunError, UserError) as error:
                warn(f"reading ahead: {error} It is retried.")
                self._files.closed.wait(REST_AFTER_FAILURE_SECONDS)
            except Exception as error:  # a bug: `path` raises it to the reader
                self.failure = error
                return
            rest = REST_PER_LOOK * (time.monotonic() - began)
            self._files.closed.wait(POSITION_POLL_SECONDS + min(rest, LONGEST_REST_SECONDS))


def _order_of(cache: weakref.ref[ShardCache]) -> Order | None:
    here = cache()
    return None if here is None or here._upcoming is None else here._upcoming()
