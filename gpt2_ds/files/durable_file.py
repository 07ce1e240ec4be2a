"""Files that are complete and on the disk, or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader, even after a crash, sees all of it, the old file, or none."""
    fresh = path.with_name(f"{path.name}.tmp")
    with naming(path):
        with fresh.open("wb") as file:
            for chunk in parts:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError inside the block: that of a failed write has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
