"""An order that reads a few shards at a time, for data that is streamed through a bounded cache.

    shards of epoch e in the order feistel(shards, key(seed, e)), their windows end to end: v
    sample n -> epoch e = n // E, position p = n % E
    lane c = p % C, q = p // C                       C lanes side by side, each reads E // C windows
    v = c * (E // C) + q, then shuffled inside the part of its shard that lies in the lane

So at any time C shards are read, each to its end, and every window once an epoch. A shard is
read by two lanes where the border of two lanes cuts it: C - 1 times an epoch. The E % C windows
that no lane has come last. As in `gpt2_ds.data.order.permutation` all is a pure function of n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt2_ds.data.order.permutation import epoch_key, feistel

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Parts of shards in the order in which an epoch comes to them; arrays of one length.

    Args:
        first: position in the epoch of the first sample from it.
        last: and of the last one.
        lane: that reads it; the number of lanes for what comes after all of them.
        shard: that it is a part of.
    """

    first: Array
    last: Array
    lane: Array
    shard: Array


@dataclass(frozen=True)
class _Epoch:
    key: npt.NDArray[np.uint64]
    shards: Array
    """(S,) in the order of this epoch."""
    cumulative: Array
    """(S + 1,) windows before each of them."""


class LaneOrder:
    """Which window each sample is.

    Args:
        shard_windows: (S,) windows of each shard; all together at least 1.
        lanes: C, shards read at a time, at least 1.
        seed: of the order.
        name: of the dataset, where there are several.
    """

    def __init__(self, shard_windows: Array, lanes: int, seed: int, name: str = "") -> None:
        self.lanes = lanes
        self._seed, self._name = seed, name
        self._counts = shard_windows
        self._before = np.cumsum([0, *shard_windows], dtype=np.int64)
        self.n_windows = int(self._before[-1])
        self._length = self.n_windows // lanes
        self._epochs: dict[int, _Epoch] = {}

    def windows(self, indices: Array) -> Array:
        """The window of each sample.

        Args:
            indices: (k,) int64 samples of this dataset, from the start of training; any epochs.

        Returns:
            (k,) int64 in 0..n_windows-1.
        """
        epochs, positions = np.divmod(indices, self.n_windows)
        windows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            windows[here] = self._epoch_windows(epoch, positions[here])
        return windows

    def _epoch_windows(self, number: int, positions: Array) -> Array:
        epoch, lanes, length = self._epoch(number), self.lanes, self._length
        in_lane = positions < lanes * length
        lane = np.where(in_lane, positions % lanes, lanes)
        place = np.where(in_lane, lane * length + positions // lanes, positions)
        order = np.searchsorted(epoch.cumulative, place, side="right") - 1
        start = np.maximum(epoch.cumulative[order], lane * length)
        end = np.where(lane < lanes, (lane + 1) * length, self.n_windows)
        end = np.minimum(epoch.cumulative[order + 1], end)
        keys = _piece_keys(epoch.key, lane, order)
        place = start + feistel(place - start, end - start, keys)
        window: Array = self._before[epoch.shards[order]] + place - epoch.cumulative[order]
        return window

    def pieces(self, number: int) -> Piece:
        """What epoch `number` reads, in order."""
        epoch, lanes, length = self._epoch(number), self.lanes, self._length
        borders = np.arange(lanes + 1, dtype=np.int64) * length
        start = np.unique(np.concatenate([epoch.cumulative[:-1], borders]))
        start = start[start < self.n_windows]
        end = np.append(start[1:], self.n_windows)
        lane = np.minimum(start // max(1, length), lanes) if length else np.full_like(start, lanes)
        in_lane = lane < lanes
        first = np.where(in_lane, (start - lane * length) * lanes + lane, start)
        last = np.where(in_lane, (end - 1 - lane * length) * lanes + lane, end - 1)
        shard = epoch.shards[np.searchsorted(epoch.cumulative, start, side="right") - 1]
        by_time = np.argsort(first, kind="stable")
        return Piece(first[by_time], last[by_time], lane[by_time], shard[by_time])

    def _epoch(self, number: int) -> _Epoch:
        known = self._epochs.get(number)
        if known is None:
            key = epoch_key(self._seed, number, self._name)
            n = len(self._counts)
            shards = feistel(np.arange(n, dtype=np.int64), n, key)
            cumulative = np.cumsum([0, *self._counts[shards]], dtype=np.int64)
            known = _Epoch(key, shards, cumulative)
            # This epoch and its neighbours; two threads may ask, so it is replaced, not changed.
            near = {other: kept for other, kept in self._epochs.items() if abs(other - number) <= 1}
            self._epochs = near | {number: known}
        return known


def _piece_keys(key: npt.NDArray[np.uint64], lane: Array, order: Array) -> npt.NDArray[np.uint64]:
    """(rounds, k): the round keys of each piece, from those of the epoch."""
    piece = (lane.astype(np.uint64) << np.uint64(32)) | order.astype(np.uint64)
    # SplitMix64 (https://doi.org/10.1145/2660193.2660195): neighbouring pieces get unlike keys.
    mixed = key[:, None] + piece[None, :] * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return keys
