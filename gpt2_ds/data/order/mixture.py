"""Which of several sources each sample is from: by weight, spread evenly, a pure function.

The samples come in periods of 10,000. In each, source s has a fixed number of places, its weight
rounded to 1 in 10,000, and the places of all sources are spread as evenly as can be. So how many
samples each source has given before sample n is a closed form; each source goes through its own
epochs by that number. From the first sample of a phase on, other weights hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERIOD = 10_000

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phase:
    """From a sample on, these weights.

    Args:
        first_sample: counted from the start of training; 0 in the first phase.
        weights: of each source, not negative; only their ratios count.
    """

    first_sample: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class _Table:
    first_sample: int
    counts: Array
    """(K,) places of each source in a period."""
    source: Array
    """(PERIOD,) whose each place is."""
    rank: Array
    """(PERIOD,) how many places the same source has before it."""
    before: Array
    """(K,) samples of each source before the phase."""


def places(weights: Sequence[float]) -> Array:
    """How many of the 10,000 places of a period each weight gets: (K,) int64.

    The exact shares rounded down, and what is left given to the largest remainders.

    >>> places([0.7, 0.2, 0.1]).tolist(), places([1, 1, 1]).tolist()
    ([7000, 2000, 1000], [3334, 3333, 3333])
    """
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * PERIOD
    counts = np.floor(exact + 1e-9).astype(np.int64)
    largest = np.argsort(-(exact - counts), kind="stable")
    counts[largest[: PERIOD - counts.sum()]] += 1
    return counts


class Mixture:
    """The sources of all samples.

    Args:
        phases: by first_sample, the first at 0.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._phases = tuple(phases)
        self._tables: list[_Table] = []
        for phase in phases:
            counts = places(phase.weights)
            # The j-th of c places of a source is due at (j + 1/2) / c of the period.
            due = np.concatenate([(np.arange(count) + 0.5) / max(1, count) for count in counts])
            owner = np.repeat(np.arange(len(counts)), counts)
            rank = np.concatenate([np.arange(count) for count in counts])
            by_time = np.argsort(due, kind="stable")
            before = self.counts(phase.first_sample) if self._tables else np.zeros_like(counts)
            table = _Table(phase.first_sample, counts, owner[by_time], rank[by_time], before)
            self._tables.append(table)
        self._starts = np.array([table.first_sample for table in self._tables], dtype=np.int64)

    def weights(self, sample_id: int) -> tuple[float, ...]:
        """The weights that hold for a sample."""
        return next(p for p in reversed(self._phases) if p.first_sample <= sample_id).weights

    def locate(self, sample_ids: Array) -> tuple[Array, Array]:
        """The source of each sample, and which sample of that source it is.

        Args:
            sample_ids: (k,) int64, counted from the start of training.

        Returns:
            Source (k,) int64, index (k,) int64 counted from the start of training.
        """
        phase = np.searchsorted(self._starts, sample_ids, side="right") - 1
        source, index = np.empty_like(sample_ids), np.empty_like(sample_ids)
        for number in np.unique(phase).tolist():
            here, table = phase == number, self._tables[number]
            period, place = np.divmod(sample_ids[here] - table.first_sample, PERIOD)
            owner = table.source[place]
            source[here] = owner
            index[here] = table.before[owner] + period * table.counts[owner] + table.rank[place]
        return source, index

    def counts(self, samples_seen: int) -> Array:
        """How many of the first `samples_seen` samples each source gives: (K,) int64."""
        table = next(t for t in reversed(self._tables) if t.first_sample <= samples_seen)
        period, place = divmod(samples_seen - table.first_sample, PERIOD)
        begun = np.bincount(table.source[:place], minlength=len(table.counts))
        return table.before + period * table.counts + begun

    def sample_of(self, source: int, indices: Array) -> Array:
        """The sample that is the index-th of a source: the inverse of `locate`.

        Args:
            source: 0..K-1.
            indices: (k,) int64.

        Returns:
            (k,) int64; 2**62 where the last phase gives the source no more.
        """
        befores = np.array([table.before[source] for table in self._tables], dtype=np.int64)
        phase = np.searchsorted(befores, indices, side="right") - 1
        found = np.full_like(indices, 2**62)
        for number in np.unique(phase).tolist():
            here, table = phase == number, self._tables[number]
            if count := int(table.counts[source]):
                slots = np.flatnonzero(table.source == source)
                period, rank = np.divmod(indices[here] - table.before[source], count)
                found[here] = table.first_sample + period * PERIOD + slots[rank]
        return found
