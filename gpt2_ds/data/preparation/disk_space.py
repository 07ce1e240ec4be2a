"""Whether the disk holds what is still to be written."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

from gpt2_ds.config.errors import RunError
from gpt2_ds.files.trouble import FILE_TROUBLES, is_full, no_room

TOKEN_BYTES = 2
TEXT_BYTES_A_TOKEN = 4


def bytes_still_needed(input_bytes: int, total_input_bytes: int | None, written_bytes: int) -> int:
    """About how much the rest of a preparation will write.

    Args:
        input_bytes: read so far.
        total_input_bytes: None: not known.
        written_bytes: so far.

    Returns:
        As many bytes a byte of input as so far; before anything was written, 2 bytes for each 4
        of input.

    >>> bytes_still_needed(0, 1000, 0), bytes_still_needed(250, 1000, 100)
    (500, 300)
    >>> bytes_still_needed(250, None, 100)
    0
    """
    if total_input_bytes is None:
        return 0
    left = max(0, total_input_bytes - input_bytes)
    if not (written_bytes and input_bytes):
        return left * TOKEN_BYTES // TEXT_BYTES_A_TOKEN
    return left * written_bytes // input_bytes


def require_space(folder: Path, n_bytes: int, needed_bytes: int) -> None:
    """Refuse to begin a write into `folder` that its disk has no room for.

    Args:
        folder: on the disk in question.
        n_bytes: to be written next.
        needed_bytes: about how much there is to write in all.

    Raises:
        RunError: less is free.
    """
    if shutil.disk_usage(folder).free < n_bytes:
        raise full_disk(folder, max(n_bytes, needed_bytes))


def full_disk(folder: Path, needed_bytes: int) -> RunError:
    """What to say when the disk is full: what is needed, and what is free."""
    free = shutil.disk_usage(folder).free
    full = no_room(f"about {needed_bytes:,} bytes are still to be written", free)
    return RunError(f"{folder}: {full}. {FILE_TROUBLES[errno.ENOSPC]}.")


def is_full_disk(error: OSError | sqlite3.Error) -> bool:
    """Whether an error means that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return is_full(error.errno)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
