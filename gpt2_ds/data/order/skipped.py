"""Samples that training skips, and so which sample comes at which position of training.

Position n counts what has been trained on (samples_seen); the sample's number is its place in the
order of the data. Without skipped ranges they are the same. A range moves the samples behind it
to earlier positions, and no sample before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import user_error

SKIPPED_FILE = "skipped_samples.json"

Array = npt.NDArray[np.int64]
Ranges = tuple[tuple[int, int], ...]


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same samples in as few ranges as can be, in order.

    Args:
        ranges: (first, one behind the last) of each.

    >>> merged([(8, 9), (0, 2), (1, 5), (5, 6)])
    ((0, 6), (8, 9))
    """
    out: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((first, end))
    return tuple(out)


class Skipped:
    """The samples that training skips.

    Args:
        ranges: (first, one behind the last) of each; may overlap.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.ranges = merged(ranges)
        pairs = np.array(self.ranges, dtype=np.int64).reshape(-1, 2)
        self._totals = np.concatenate([[0], np.cumsum(pairs[:, 1] - pairs[:, 0])])
        self._positions = pairs[:, 0] - self._totals[:-1]

    def samples(self, positions: Array) -> Array:
        """The sample at each position of training.

        Args:
            positions: (k,) int64, 0 is the first.

        Returns:
            (k,) int64, larger for a larger position; none of them in a skipped range.

        >>> Skipped([(2, 4)]).samples(np.arange(4)).tolist()
        [0, 1, 4, 5]
        """
        if not self.ranges:
            return positions
        before = np.searchsorted(self._positions, positions, side="right")
        moved: Array = positions + self._totals[before]
        return moved

    def sample(self, position: int) -> int:
        """The sample at one position of training."""
        return int(self.samples(np.array([position], dtype=np.int64))[0])

    def before(self, position: int) -> Ranges:
        """The ranges that lie before the sample at a position of training."""
        return self.ranges[: int(np.searchsorted(self._positions, position, side="right"))]

    def shifts(self, start: int, end: int) -> list[int]:
        """By how much the sample's number is ahead of the position, somewhere in start..end-1."""
        first = np.searchsorted(self._positions, start, side="right")
        last = np.searchsorted(self._positions, end, side="left")
        return [int(total) for total in self._totals[first : max(first, last) + 1]]


def read_skipped(run_dir: Path) -> Ranges:
    """The ranges that a run skips, merged; none where it never skipped any.

    Raises:
        UserError: the file is not what this project writes.
    """
    path = run_dir / SKIPPED_FILE
    if not path.exists():
        return ()
    try:
        ranges = [(int(first), int(end)) for first, end in json.loads(path.read_bytes())]
    except (ValueError, TypeError):
        raise user_error(
            str(path),
            "is not a list of ranges of samples ([[first, one behind the last], ...])",
            "Restore a copy; without it the run would train on the skipped samples.",
        ) from None
    return merged(ranges)
