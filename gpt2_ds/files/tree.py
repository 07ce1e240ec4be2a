"""Files that a manifest describes, fetched from a remote into a folder of this machine."""

from __future__ import annotations

import errno
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt2_ds.config.errors import RunError
from gpt2_ds.files.checksum import sha256_of
from gpt2_ds.files.durable_file import naming
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.trouble import advice, file_trouble, no_room, writing

WORKERS = 4
TELL_SECONDS = 0.5

Item = TypeVar("Item")


@dataclass(frozen=True)
class ExpectedFile:
    """What a manifest says of one file.

    Args:
        name: relative to the tree, and inside of it.
        n_bytes: its size.
        sha256: in hexadecimal.
    """

    name: str
    n_bytes: int
    sha256: str


def missing_files(
    folder: Path,
    files: Sequence[ExpectedFile],
    heartbeat: Heartbeat = UNHEARD,
) -> list[ExpectedFile]:
    """The files that the folder lacks, or that are wrong in it; checks that its disk has room.

    Args:
        folder: must exist.
        files: that should be in it.
        heartbeat: of the reading.

    Raises:
        RunError: the disk has too little room; or a file that is there cannot be read.
    """
    missing: set[ExpectedFile] = set()

    def look(file: ExpectedFile) -> None:
        if not _is_whole(folder / file.name, file, heartbeat):
            missing.add(file)

    in_parallel(look, files, WORKERS)
    needed, usage = sum(file.n_bytes for file in missing), shutil.disk_usage(folder)
    if needed > usage.free and usage.total > 0:  # in front of a bucket, some say 0 of 0
        full = no_room(f"{needed:,} bytes are needed", usage.free)
        raise RunError(f"{folder}: {full}. {advice(errno.ENOSPC)}")
    return [file for file in files if file in missing]


def fetch_files(
    remote: RemoteFolder,
    files: Sequence[ExpectedFile],
    folder: Path,
    *,
    under: str = "",
    workers: int = WORKERS,
    tell: Callable[[int], None] = lambda done_bytes: None,
) -> None:
    """Download files: each is complete, right and on the disk, or not there.

    Args:
        remote: where they are.
        files: to be downloaded; see `missing_files`.
        folder: where they go; folders in it are made.
        under: what comes before their names at the remote: "", or a folder with a slash.
        workers: downloads at a time.
        tell: called twice a second, and at the end, with the bytes of the files that are done.

    Raises:
        Exception: the first that a download raised, as `RemoteFolder.download`; it ends the
            others.
    """
    for parent in {(folder / file.name).parent for file in files}:
        with writing(parent, 0):
            parent.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    done: list[int] = []

    def download(file: ExpectedFile) -> None:
        path = folder / file.name
        remote.download(f"{under}{file.name}", path, file.n_bytes, file.sha256, stop)
        done.append(file.n_bytes)

    in_parallel(download, files, workers, stop, lambda: tell(sum(done)))


def in_parallel(
    work: Callable[[Item], None],
    items: Sequence[Item],
    workers: int,
    stop: threading.Event | None = None,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Do some work on each item, a few at a time; the first exception ends it.

    The threads are daemons: a library that hangs in one must not keep the process from ending.

    Args:
        work: on one item, from any thread.
        items: in the order of work.
        workers: items at a time.
        stop: is set when no more items are begun: after an exception, and when all is done.
        tell: called twice a second, and when all is done.

    Raises:
        Exception: the first that `work` raised.
    """
    if not items:
        return
    stop = stop or threading.Event()
    waiting, faults = deque(items), deque[BaseException]()

    def run() -> None:
        while not stop.is_set():
            try:
                item = waiting.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as fault:
                faults.append(fault)
                stop.set()

    threads = [
        threading.Thread(
            target=run, name=f"{threading.current_thread().name}-{number}", daemon=True
        )
        for number in range(min(workers, len(items)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(TELL_SECONDS)
                if thread.is_alive():
                    tell()
    finally:
        stop.set()  # also when this thread is interrupted
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if faults:
        raise faults[0]
    tell()


def _is_whole(path: Path, file: ExpectedFile, heartbeat: Heartbeat) -> bool:
    try:
        with naming(path):
            if not path.is_file() or path.stat().st_size != file.n_bytes:
                return False
            return sha256_of(path, heartbeat) == file.sha256
    except OSError as error:
        raise RunError(file_trouble(error)) from error
