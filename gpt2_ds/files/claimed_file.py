"""A temporary file that one process or thread at a time writes; nobody has to delete it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from gpt2_ds.files.trouble import writing

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def claimed(path: Path) -> Iterator[FileIO | None]:
    """Claim a temporary file for as long as the block runs; then it is renamed, or deleted.

    The claim is a lock of the kernel on the file itself. So it ends with its owner, however the
    owner ends, and the file of a dead process is claimed like any other.

    Args:
        path: of the temporary file, on a local disk; made if need be.

    Returns:
        A context manager that gives the file, opened for writing, with whatever its last owner
        wrote; or None: another owner has claimed it, or has just finished it.

    Raises:
        RunError: the file cannot be made or locked.
    """
    with writing(path, 0):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with FileIO(descriptor, "r+") as file:
        try:
            with writing(path, 0):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not is_at(file, path):  # renamed or deleted between opening and locking
            yield None
            return
        try:
            yield file
        finally:
            if is_at(file, path):
                path.unlink()


def is_at(file: FileIO, path: Path) -> bool:
    """Whether this open file is what `path` names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def allocate(file: FileIO, path: Path, n_bytes: int) -> None:
    """Reserve room on the disk for the whole file, so that it has its final size from the start.

    Raises:
        RunError: the disk is full; says how much is needed and how much is free.
    """
    with writing(path, n_bytes):
        file.truncate(0)
        if n_bytes:
            os.posix_fallocate(file.fileno(), 0, n_bytes)


def write_all(file: FileIO, path: Path, data: bytes) -> None:
    """Write every byte.

    Raises:
        RunError: the disk is full, or fails.
    """
    view = memoryview(data)
    with writing(path, len(data)):
        while view:
            view = view[file.write(view) :]
