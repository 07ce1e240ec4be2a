"""The samples of a training run by number: which source, shard and place, and their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.format.split import Split, Tokens
from gpt2_ds.data.order.lanes import LaneOrder
from gpt2_ds.data.order.mixture import Mixture, Phase
from gpt2_ds.data.order.permutation import sample_windows
from gpt2_ds.data.order.skipped import Skipped

Array = npt.NDArray[np.int64]


class Samples:
    """All samples of a run; their order is a pure function of their number.

    Training counts by position: how many it has seen. Without skipped samples, the sample at
    position n is number n.

    Args:
        splits: the training split of each source.
        seq_length: T, tokens a sequence.
        seed: of the order.
        lanes: shards of each source read at a time; 0 shuffles over all of them.
        names: of the sources; they take part in the order, so that no two sources share one.
        mixture: which source each sample is from; not needed for one source.
        skipped: ranges of samples: (first, one behind the last) of each.

    Raises:
        UserError: a split is too short for one window.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        *,
        seq_length: int,
        seed: int,
        lanes: int = 0,
        names: Sequence[str] = ("",),
        mixture: Mixture | None = None,
        skipped: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.splits, self.seq_length, self.lanes = tuple(splits), seq_length, lanes
        self.names = tuple(names)
        self.mixture = mixture or Mixture([Phase(0, (1.0,))])
        self.skipped = Skipped(skipped)
        self._seed = seed
        for split in splits:
            require_windows(split, seq_length, at_least=1)
        self._lane_orders = [
            LaneOrder(split.shard_windows(seq_length), lanes, seed, name) if lanes else None
            for split, name in zip(splits, names, strict=True)
        ]

    def numbers(self, start: int, end: int) -> tuple[int, int]:
        """The numbers of the samples at some positions of training: the first, one behind the last.

        Args:
            start: the first position, as an optimizer step begins there.
            end: one behind the last; above `start`.
        """
        return self.skipped.sample(start), self.skipped.sample(end - 1) + 1

    def locate(self, positions: Array) -> tuple[Array, Array]:
        """Where the sample at each position of training is.

        Args:
            positions: (k,) int64, counted from the start of training.

        Returns:
            Source (k,) int64, window of its split (k,) int64.
        """
        sample_ids = self.skipped.samples(positions)
        if len(self.splits) == 1:
            return np.zeros_like(sample_ids), self._windows(0, sample_ids)
        sources, indices = self.mixture.locate(sample_ids)
        windows = np.empty_like(indices)
        for source in np.unique(sources).tolist():
            here = sources == source
            windows[here] = self._windows(source, indices[here])
        return sources, windows

    def _windows(self, source: int, indices: Array) -> Array:
        lanes, name = self._lane_orders[source], self.names[source]
        if lanes is not None:
            return lanes.windows(indices)
        n_windows = self.splits[source].n_windows(self.seq_length)
        return sample_windows(indices, n_windows, self._seed, name)

    def read(self, sources: Array, windows: Array) -> Tokens:
        """The tokens of samples.

        Args:
            sources: (k,) int64, from `locate`.
            windows: (k,) int64, from `locate`.

        Returns:
            (k, T + 1) token ids, of the smallest type that holds those of all sources.
        """
        if len(self.splits) == 1:
            return self.splits[0].windows(windows, self.seq_length)
        dtype = np.result_type(*(split.dtype for split in self.splits))
        out = np.empty((len(windows), self.seq_length + 1), dtype=dtype)
        for source in np.unique(sources).tolist():
            here = sources == source
            out[here] = self.splits[source].windows(windows[here], self.seq_length)
        return out

    def tokens_by_source(self, samples_seen: int) -> dict[str, int]:
        """Tokens trained on so far, by the name of the source; empty for one source."""
        if len(self.splits) == 1:
            return {}
        counts = self.mixture.counts(self.skipped.sample(samples_seen))
        for first, end in self.skipped.before(samples_seen):
            counts = counts - self.mixture.counts(end) + self.mixture.counts(first)
        return {
            name: count * self.seq_length
            for name, count in zip(self.names, counts.tolist(), strict=True)
        }

    def weights(self, samples_seen: int) -> list[float]:
        """The weight of each source in the last of the first `samples_seen` samples."""
        return list(self.mixture.weights(self.skipped.sample(max(0, samples_seen - 1))))

    def upcoming(
        self, samples_seen: int, end: int, ranks: Iterable[int], world_size: int
    ) -> list[tuple[int, ShardEntry]]:
        """The shards that some ranks will read, each once, in the order of its next use.

        Args:
            samples_seen: by all ranks; from here on.
            end: samples that the whole run trains on.
            ranks: of one machine, which share what is fetched.
            world_size: the number of data-parallel processes.

        Returns:
            (source, shard) of each.
        """
        found: list[tuple[int, int, ShardEntry]] = []
        # A rank's samples move to other lanes where the number of skipped ones is not a multiple
        # of gcd(W, lanes).
        shifts = self.skipped.shifts(samples_seen, end)
        readers = {rank + shift for rank in ranks for shift in shifts}
        next_sample, end = self.skipped.sample(samples_seen), self.skipped.sample(end)
        seen = self.mixture.counts(next_sample) if len(self.splits) > 1 else [next_sample]
        for source, split in enumerate(self.splits):
            next_uses, shards = self._next_uses(source, int(seen[source]), readers, world_size)
            if len(self.splits) > 1:
                next_uses = self.mixture.sample_of(source, next_uses)
            order = np.argsort(next_uses, kind="stable")
            order = order[next_uses[order] < end]
            _, firsts = np.unique(shards[order], return_index=True)
            for i in order[firsts].tolist():
                found.append((int(next_uses[i]), source, split.entries[int(shards[i])]))
        found.sort(key=lambda use: use[0])
        return [(source, entry) for _, source, entry in found]

    def _next_uses(
        self, source: int, index: int, ranks: set[int], world_size: int
    ) -> tuple[Array, Array]:
        """(sample of the source, shard) of each next use, in this epoch and the next.

        Each of `ranks` may be any number: its reader's samples are that plus multiples of the
        world size.
        """
        order = self._lane_orders[source]
        if order is None:  # a shuffle over all shards reads every one of them at any time
            used = np.flatnonzero(self.splits[source].shard_windows(self.seq_length))
            return np.full_like(used, index), used
        n_windows = order.n_windows
        epoch, position = divmod(index, n_windows)
        uses, shards = [], []
        for number in (epoch, epoch + 1):
            pieces = order.pieces(number)
            mine = pieces.lane == self.lanes
            if len(self.splits) == 1:
                # Rank r reads the samples r, r + W, ...: the lanes of those modulo gcd(W, lanes).
                common = int(np.gcd(world_size, self.lanes))
                residues = [(rank - number * n_windows) % common for rank in ranks]
                mine |= np.isin(pieces.lane % common, residues)
            else:
                mine[:] = True
            mine &= (pieces.last >= position) | (number > epoch)
            since = position if number == epoch else 0
            in_lane = since + (pieces.first - since) % self.lanes  # the lane's first from there on
            next_use = np.where(pieces.lane < self.lanes, in_lane, since)
            uses.append(number * n_windows + np.maximum(pieces.first, next_use)[mine])
            shards.append(pieces.shard[mine])
        return np.concatenate(uses), np.concatenate(shards)


def require_windows(split: Split, seq_length: int, at_least: int) -> int:
    """How many windows a split has.

    Raises:
        UserError: fewer than `at_least`.
    """
    n_windows = split.n_windows(seq_length)
    if n_windows < at_least:
        raise user_error(
            f"split {split.name}",
            f"{split.n_tokens} tokens make {n_windows} windows of {seq_length} + 1 tokens, "
            f"and {at_least} are needed",
            "Use a shorter sequence, ask for fewer windows, or prepare more text.",
        )
    return n_windows
