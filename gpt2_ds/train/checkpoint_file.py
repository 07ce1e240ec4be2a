"""A file of a checkpoint as it is written: whole, and on the disk bit by bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from gpt2_ds.data.durable_file import sync

PIECE_BYTES = 1 << 26
SYNC_BYTES = 1 << 28


class _WholeFile(FileIO):
    """Writes all that it is given, where the system takes at most 2 GiB at a time.

    torch 2.13 takes no notice of how much was written: a larger tensor would be cut off in silence,
    and the file hashed as it is. What is written is brought to the disk on the way: a disk that no
    longer answers is then seen at once, not in the fsync after hundreds of gigabytes.
    """

    def __init__(self, path: Path, moved: Callable[[], None]) -> None:
        super().__init__(path, "w")
        self._moved, self._unsynced_bytes = moved, 0

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
            self._moved()
        return len(whole)


def save_state(state: Any, path: Path, moved: Callable[[], None] = lambda: None) -> None:
    """`torch.save` into a file that is then on the disk.

    Args:
        state: tensors in containers.
        path: of the file.
        moved: called whenever a part of it is written.
    """
    with _WholeFile(path, moved) as file:  # given the path, torch hides the system's error
        torch.save(state, file)
    sync(path)
