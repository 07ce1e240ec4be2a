"""Writes the files of a checkpoint: whole, and brought to the disk on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from gpt2_ds.checkpoint.manifest import FileRecord, hash_file
from gpt2_ds.files.durable_file import sync
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.files.trouble import file_trouble

PIECE_BYTES = 1 << 26
SYNC_BYTES = 1 << 28


class _WholeFile(FileIO):
    """Writes all that it is given, where the system takes at most 2 GiB at a time.

    torch 2.13 ignores how much was written: a larger tensor would be cut off in silence, and the
    file hashed as it is. What is written is brought to the disk on the way: a disk that does not
    answer any more is then seen at once, not in the fsync after hundreds of gigabytes.
    """

    def __init__(self, path: Path, heartbeat: Heartbeat) -> None:
        super().__init__(path, "w")
        self._heartbeat, self._unsynced_bytes = heartbeat, 0

    def write(self, data: Any) -> int:
        """All of `data`."""
        whole = memoryview(data).cast("B")
        start = 0
        while start < len(whole):
            n_bytes = os.write(self.fileno(), whole[start : start + PIECE_BYTES])
            start += n_bytes
            self._unsynced_bytes += n_bytes
            if self._unsynced_bytes >= SYNC_BYTES:
                os.fsync(self.fileno())
                self._unsynced_bytes = 0
            self._heartbeat.beat()
        return len(whole)


def save_state(state: Any, path: Path, heartbeat: Heartbeat = UNHEARD) -> list[Path]:
    """`torch.save` into a file that is then on the disk.

    Args:
        state: tensors in containers.
        path: of the file.
        heartbeat: of the writing.

    Returns:
        The file, as `write` wants it.
    """
    with _WholeFile(path, heartbeat) as file:  # given the path, torch hides the system's error
        torch.save(state, file)
    sync(path)
    return [path]


def done_now(work: Callable[[], list[Path]]) -> Callable[[], list[Path]]:
    """Do `work` now; its failure is raised when the result is asked for."""
    now: Future[list[Path]] = Future()
    try:
        now.set_result(work())
    except Exception as error:
        # Raised here it would leave the other ranks waiting inside DeepSpeed.
        now.set_exception(error)
    return now.result


def write(
    partial: Path, work: list[Callable[[], list[Path]]], heartbeat: Heartbeat
) -> dict[str, FileRecord]:
    """Write, fsync and hash this rank's files, and fsync the folders that hold their names.

    Args:
        partial: the step directory, not yet complete.
        work: each writes some files and returns them.
        heartbeat: of this.
    """
    records, folders = {}, {partial}
    while work:
        for path in work.pop(0)():
            sync(path)
            records[str(path.relative_to(partial))] = hash_file(path, heartbeat)
            folders |= {folder for folder in path.parents if folder.is_relative_to(partial)}
            heartbeat.beat()
    for folder in folders:
        sync(folder)
    return records


def trouble(error: BaseException, partial: Path) -> str:
    """A sentence for why a checkpoint could not be written, with the fix."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if cause is not None:
        return file_trouble(OSError(cause.errno, cause.strerror, cause.filename or str(partial)))
    what = (str(error) or type(error).__name__).splitlines()[0]
    free = ""
    with suppress(OSError):  # a disk that is gone must not hide what was the matter
        free = f" ({shutil.disk_usage(partial.parent).free:,} bytes are free there)"
    return (
        f"{partial}: could not be written: {what}{free}. The checkpoints before it are untouched. "
        "Mend it, then give the same command again."
    )
