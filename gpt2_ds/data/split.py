"""The tokens of one split, read window by window."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.data.shards import ShardHeader, map_tokens

# A map holds a file descriptor, and a process often may have no more than 1,024 of them.
MAX_OPEN_SHARDS = 256


class Split:
    """The tokens of one split, as windows of any length.

    A window lies inside one shard and begins `seq_length` tokens after the one before it. It has
    `seq_length + 1` tokens: its last is the first of the next, so every token but the first of
    a shard is predicted once.

    Args:
        name: of the split.
        shards: path and header of each, in order.
    """

    def __init__(self, name: str, shards: Sequence[tuple[Path, ShardHeader]]) -> None:
        self.name = name
        self._shards = tuple(shards)
        self._maps: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()  # the read-ahead thread and the main one may both read
        self._cumulative: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def n_tokens(self) -> int:
        """All tokens of the split."""
        return sum(header.n_tokens for _, header in self._shards)

    def n_windows(self, seq_length: int) -> int:
        """How many windows of `seq_length + 1` tokens there are: (tokens - 1) // T a shard."""
        return int(self._cumulative_windows(seq_length)[-1])

    def windows(self, ids: npt.NDArray[np.int64], seq_length: int) -> npt.NDArray[np.int64]:
        """Read windows.

        Args:
            ids: (n,) int64 in 0..n_windows-1, in any order.
            seq_length: T.

        Returns:
            (n, T + 1) int64 token ids.

        Raises:
            IndexError: there is no such window.
        """
        cumulative = self._cumulative_windows(seq_length)
        if len(ids) and not (ids.min() >= 0 and ids.max() < cumulative[-1]):
            raise IndexError(
                f"{self.name}: windows {ids.min()}..{ids.max()} of 0..{cumulative[-1] - 1}"
            )
        out = np.empty((len(ids), seq_length + 1), dtype=np.int64)
        owners = np.searchsorted(cumulative, ids, side="right") - 1
        starts = (ids - cumulative[owners]) * seq_length
        # Row by row: in a global shuffle over many shards nearly each row is of another one.
        for row, (shard, start) in enumerate(zip(owners.tolist(), starts.tolist(), strict=True)):
            out[row] = self._tokens(shard)[start : start + seq_length + 1]
        return out

    def _cumulative_windows(self, seq_length: int) -> npt.NDArray[np.int64]:
        """(n_shards + 1,): the windows before each shard, and all of them."""
        if seq_length not in self._cumulative:
            counts = [max(0, header.n_tokens - 1) // seq_length for _, header in self._shards]
            self._cumulative[seq_length] = np.cumsum([0, *counts], dtype=np.int64)
        return self._cumulative[seq_length]

    def _tokens(self, shard: int) -> npt.NDArray[Any]:
        with self._lock:
            if shard not in self._maps:
                self._maps[shard] = map_tokens(*self._shards[shard])
                if len(self._maps) > MAX_OPEN_SHARDS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(shard)
            return self._maps[shard]
