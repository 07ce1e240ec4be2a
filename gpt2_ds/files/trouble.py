"""What to say of a file or a disk that the system refuses: one wording for all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_ds.config.errors import Fault, RunError

_NOT_WRITABLE = "Make the folder writable"
FILE_TROUBLES = {
    errno.ENOSPC: "Make room on this disk",
    errno.EDQUOT: "Make room within the quota",
    errno.EROFS: _NOT_WRITABLE,
    errno.EACCES: _NOT_WRITABLE,
    errno.EPERM: _NOT_WRITABLE,
    errno.EFBIG: "Raise the limit on the size of a file",
    errno.EIO: "See what the system says of this disk",
    errno.ESTALE: "See whether the network disk is there",
}
"""What a file or a disk can refuse, and what a person does about it."""


def is_full(number: int | None) -> bool:
    """Whether an errno says that the disk, or the user's share of it, is full."""
    return number in (errno.ENOSPC, errno.EDQUOT)


def advice(number: int | None, other: str = "") -> str:
    """What a person does about an errno, as a sentence.

    Args:
        number: of the error.
        other: the option or key that names another place; "": there is none.

    >>> advice(errno.ENOSPC)
    'Make room on this disk, then give the same command again.'
    >>> advice(errno.EACCES, "--run-dir")
    'Make the folder writable, or name another with --run-dir.'
    """
    if other and number not in FILE_TROUBLES:
        return f"Name a folder that you may write to with {other}."
    what = FILE_TROUBLES.get(number or 0, "Mend it")
    return (
        f"{what}, or name another with {other}."
        if other
        else f"{what}, then give the same command again."
    )


def file_trouble(error: OSError) -> str:
    """A sentence for what the system says of a file, read or written in a run, with the fix.

    >>> file_trouble(OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    'runs/x: No space left on device. Make room on this disk, then give the same command again.'
    """
    name = error.filename2 or error.filename  # of a copy, the second is what is written
    where = f"{name}: " if name else ""
    # A run whose disk is full resumes in place; one that may not write there needs another folder.
    other = "--run-dir" if FILE_TROUBLES.get(error.errno or 0) == _NOT_WRITABLE else ""
    return f"{where}{error.strerror or error}. {advice(error.errno, other)}"


def write_fault(where: Path, error: OSError, *, n_bytes: int = 0, other: str = "") -> Fault:
    """What to say of a file or folder that cannot be written.

    Args:
        where: the file or folder.
        error: the system's.
        n_bytes: that are needed; said of a full disk, with how many are free.
        other: as for `advice`.
    """
    what = f"cannot be written ({error.strerror or error})"
    if n_bytes and is_full(error.errno):
        with suppress(OSError):  # a disk that is gone must not hide the error itself
            free_bytes = shutil.disk_usage(where.parent).free
            what = no_room(f"{n_bytes:,} bytes are needed", free_bytes)
    return Fault(str(where), what, advice(error.errno, other))


@contextmanager
def writing(path: Path, n_bytes: int, other: str = "") -> Iterator[None]:
    """A failure to write inside the block becomes a `RunError` that says what the disk refused.

    Args:
        path: what is written.
        n_bytes: that are needed.
        other: the option or key that names another place; "": there is none.

    Raises:
        RunError: in place of an OSError; of a full disk, with what is needed and what is free.
    """
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise RunError(str(write_fault(path, error, n_bytes=n_bytes, other=other))) from error


def no_room(needed: str, free_bytes: int) -> str:
    """What to say of a full disk.

    >>> no_room("2,000 bytes are needed", 1999)
    'the disk is full: 2,000 bytes are needed, and 1,999 are free'
    """
    return f"the disk is full: {needed}, and {free_bytes:,} are free"
