"""Which window of tokens is sample number n: a pure function, the same on every rank.

    sample n -> epoch e = n // E, position p = n % E        E windows, each once an epoch
    window   = feistel(p, E, key(seed, e))                  a permutation of 0..E-1

There is no state but n, the number of samples seen. So a resume is exact and takes no time, and
the samples of an optimizer step depend on n and the global batch size alone, not on how many
processes share them. The permutation is a Feistel network over the next even power of two, walked
until it falls inside 0..E-1: no array of the data's size, and no random generator of a library,
whose stream may change between versions.

`lanes` is the order for streamed data, `mixture` says which of several datasets a sample is from,
and `samples` puts them together.

Source: https://en.wikipedia.org/wiki/Format-preserving_encryption (cycle walking);
https://doi.org/10.1137/0217022 (Luby and Rackoff: four rounds make a pseudorandom permutation).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import user_error
from gpt2_ds.config.numbers import divisors

ROUNDS = 8
_POWERS_OF_4 = np.uint64(4) ** np.arange(1, 32, dtype=np.uint64)


def epoch_key(seed: int, epoch: int, name: str = "") -> npt.NDArray[np.uint64]:
    """The round keys of one epoch of the dataset called `name`: (ROUNDS,) uint64.

    >>> hex(epoch_key(seed=1, epoch=0)[0])
    '0xe42d5b90615c1c01'
    """
    return round_keys(f"order {seed} {epoch} {name}".rstrip())


def round_keys(words: str) -> npt.NDArray[np.uint64]:
    """The round keys that some words give: (ROUNDS,) uint64."""
    digest = hashlib.sha512(f"gpt2_ds {words}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def feistel(
    positions: npt.NDArray[np.int64], n: int | npt.NDArray[np.int64], key: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """A keyed permutation of 0..n-1; or many at once, each position in one of its own.

    Args:
        positions: (k,) int64 in 0..n-1.
        n: at least 1, at most 2**62; or (k,) int64 of such.
        key: (rounds,) uint64, or (rounds, k); another key gives another permutation.

    Returns:
        (k,) int64: where each position goes.

    >>> feistel(np.arange(8), 8, epoch_key(seed=1, epoch=0)).tolist()
    [2, 7, 1, 3, 0, 4, 6, 5]
    """
    sizes = np.asarray(n, dtype=np.uint64)
    # The fewest bits in two equal halves that count to n: 4**half_bits >= n.
    half_bits = (np.searchsorted(_POWERS_OF_4, sizes) + 1).astype(np.uint64)
    out = _network(positions.astype(np.uint64), half_bits, key)
    # Walk on while outside: the walk starts inside 0..n-1, so it comes back there.
    while (outside := np.flatnonzero(out >= sizes)).size:
        bits = half_bits[outside] if half_bits.ndim else half_bits
        keys = key[:, outside] if key.ndim > 1 else key
        out[outside] = _network(out[outside], bits, keys)
    return out.astype(np.int64)


def _network(
    values: npt.NDArray[np.uint64],
    half_bits: npt.NDArray[np.uint64],
    key: npt.NDArray[np.uint64],
) -> npt.NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    high = np.uint64(64) - half_bits
    left, right = values >> half_bits, values & mask
    for round_key in key:
        # The finalizer of MurmurHash3, whose high bits depend on every bit of what goes in.
        mixed = right ^ round_key
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(0xFF51AFD7ED558CCD)
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(0xC4CEB9FE1A85EC53)
        left, right = right, left ^ (mixed >> high)
    return (left << half_bits) | right


def sample_windows(
    sample_ids: npt.NDArray[np.int64], n_windows: int, seed: int, name: str = ""
) -> npt.NDArray[np.int64]:
    """The window of each sample.

    Args:
        sample_ids: (k,) int64, counted from the start of training; any epochs.
        n_windows: of the split, at least 1.
        seed: of the order.
        name: of the dataset, where there are several.

    Returns:
        (k,) int64 in 0..n_windows-1.

    >>> sample_windows(np.arange(6), n_windows=3, seed=1).tolist()
    [2, 1, 0, 0, 2, 1]
    """
    epochs, positions = np.divmod(sample_ids, n_windows)
    windows = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        windows[here] = feistel(positions[here], n_windows, epoch_key(seed, epoch, name))
    return windows


def rank_sample_ids(
    samples_seen: int, global_batch_size: int, rank: int, world_size: int
) -> npt.NDArray[np.int64]:
    """The samples of one rank in the optimizer step that begins after `samples_seen` samples.

    Args:
        samples_seen: by all ranks, since the start of training.
        global_batch_size: sequences an optimizer step, all ranks.
        rank: 0..world_size-1, among the data-parallel processes.
        world_size: the number of data-parallel processes.

    Returns:
        (global_batch_size / world_size,) int64.

    Raises:
        UserError: the world size does not divide the global batch.

    >>> rank_sample_ids(samples_seen=8, global_batch_size=4, rank=1, world_size=2).tolist()
    [9, 11]
    """
    if global_batch_size % world_size:
        fit = divisors(global_batch_size)
        raise user_error(
            "world size",
            f"{world_size} does not divide the batch of {global_batch_size} sequences a step",
            f"Use one of {', '.join(map(str, fit))} processes.",
        )
    share = np.arange(global_batch_size // world_size, dtype=np.int64)
    return samples_seen + rank + world_size * share
