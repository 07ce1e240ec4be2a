"""The tokens of one split, read window by window."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.layouts import token_offset
from gpt2_ds.data.format.manifest import ShardEntry

# A map holds a file descriptor, and a process often may have no more than 1,024 of them.
MAX_OPEN_SHARDS = 256
# A streamed shard may be deleted between being fetched and being opened, by another process.
OPEN_ATTEMPTS = 5

Array = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer[Any]]


class Split:
    """The tokens of one split, as windows of any length.

    A window lies inside one shard and begins `seq_length` tokens after the one before it. It has
    `seq_length + 1` tokens: its last is the first of the next, so every token but the first of
    a shard is predicted once.

    Args:
        name: of the split.
        entries: of its shards in the manifest, in order.
        dtype: of the tokens.
        locate: gives the file of a shard on this machine; may fetch it first.

    Attributes:
        max_open_shards: mapped at a time. What is mapped keeps its place on the disk, even if it
            is deleted.
    """

    def __init__(
        self,
        name: str,
        entries: Sequence[ShardEntry],
        dtype: str,
        locate: Callable[[ShardEntry], Path],
    ) -> None:
        self.name = name
        self.entries = tuple(entries)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.max_open_shards = MAX_OPEN_SHARDS
        self._locate = locate
        self._maps: OrderedDict[int, Tokens] = OrderedDict()
        self._lock = threading.Lock()  # the read-ahead thread and the main one may both read
        self._before: dict[int, Array] = {}

    @property
    def n_tokens(self) -> int:
        """All tokens of the split."""
        return sum(entry.tokens for entry in self.entries)

    def shard_windows(self, seq_length: int) -> Array:
        """How many windows of `seq_length + 1` tokens each shard has: (tokens - 1) // T."""
        return np.diff(self._windows_before(seq_length))

    def n_windows(self, seq_length: int) -> int:
        """How many windows there are in all shards."""
        return int(self._windows_before(seq_length)[-1])

    def place(self, window: int, seq_length: int) -> tuple[int, int]:
        """The shard a window is in, by its place in `entries`, and the window's first token there.

        Raises:
            IndexError: there is no such window.
        """
        shards, slots = self._places(np.array([window], dtype=np.int64), seq_length)
        return int(shards[0]), int(slots[0]) * seq_length

    def windows(self, ids: Array, seq_length: int) -> Tokens:
        """Read windows.

        Args:
            ids: (n,) int64 in 0..n_windows-1, in any order.
            seq_length: T.

        Returns:
            (n, T + 1) token ids, of `dtype`.

        Raises:
            IndexError: there is no such window.
        """
        shards, slots = self._places(ids, seq_length)
        order = np.argsort(shards, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if len(ids) else []
        if len(groups) == 1:
            return _overlapping(self.tokens(int(shards[0])), seq_length)[slots]
        out = np.empty((len(ids), seq_length + 1), dtype=self.dtype)
        for rows in groups:  # one gather a shard
            out[rows] = _overlapping(self.tokens(int(shards[rows[0]])), seq_length)[slots[rows]]
        return out

    def tokens(self, shard: int) -> Tokens:
        """All tokens of a shard: (n_tokens,), memory-mapped and read-only."""
        with self._lock:
            mapped = self._maps.pop(shard, None)
            if mapped is None:
                while len(self._maps) >= self.max_open_shards:
                    self._maps.popitem(last=False)
                mapped = self._map(self.entries[shard])
            self._maps[shard] = mapped
            return mapped

    def _map(self, entry: ShardEntry, attempts: int = OPEN_ATTEMPTS) -> Tokens:
        path = self._locate(entry)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            offset = token_offset(path, entry.layout)
        except (FileNotFoundError, UserError) as error:
            is_gone = isinstance(error.__cause__ or error, FileNotFoundError)
            if attempts == 1 or not is_gone:
                raise
            return self._map(entry, attempts - 1)
        return np.frombuffer(mapped, self.dtype, entry.tokens, offset)

    def _places(self, ids: Array, seq_length: int) -> tuple[Array, Array]:
        """(n,) shard of each window, (n,) which window of the shard it is."""
        before = self._windows_before(seq_length)
        if len(ids) and not (ids.min() >= 0 and ids.max() < before[-1]):
            raise IndexError(
                f"{self.name}: windows {ids.min()}..{ids.max()} of 0..{before[-1] - 1}"
            )
        shards = np.searchsorted(before, ids, side="right") - 1
        return shards, ids - before[shards]

    def _windows_before(self, seq_length: int) -> Array:
        """(n_shards + 1,): the windows before each shard, and all of them."""
        if seq_length not in self._before:
            counts = [max(0, entry.tokens - 1) // seq_length for entry in self.entries]
            self._before[seq_length] = np.cumsum([0, *counts], dtype=np.int64)
        return self._before[seq_length]


def _overlapping(tokens: Tokens, seq_length: int) -> Tokens:
    """All windows of a shard without copying: (windows, T + 1), each row T tokens further on."""
    shape = (max(0, len(tokens) - 1) // seq_length, seq_length + 1)
    step = tokens.itemsize
    return np.ndarray(shape, tokens.dtype, tokens.data, 0, (seq_length * step, step))
