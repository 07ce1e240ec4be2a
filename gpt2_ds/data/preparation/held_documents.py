"""Documents that wait in memory until they are written as a shard."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.data.order.permutation import feistel, round_keys

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Lengths = npt.NDArray[np.int64]
# Documents whose tokens are moved at once: an array object each, of a hundred bytes.
DOCUMENTS_AT_ONCE = 2**14


class HeldDocuments:
    """Whole documents, in order.

    Args:
        dtype: of the tokens.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.n_tokens = self.n_documents = 0
        # Never without an array, so that there is something to concatenate.
        self._tokens: list[Tokens] = [np.empty(0, dtype)]
        self._lengths: list[Lengths] = [np.empty(0, np.int64)]

    def add(self, tokens: Tokens, lengths: Lengths) -> None:
        """Hold more.

        Args:
            tokens: (n_tokens,) of all documents.
            lengths: (n_documents,) how many of them each has.
        """
        self.n_tokens += len(tokens)
        self.n_documents += len(lengths)
        self._tokens.append(tokens)
        self._lengths.append(lengths)

    def take(self) -> tuple[Tokens, Lengths]:
        """Empty it.

        Returns:
            The tokens and lengths that were held.
        """
        tokens, lengths = np.concatenate(self._tokens), np.concatenate(self._lengths)
        self.n_tokens = self.n_documents = 0
        del self._tokens[1:], self._lengths[1:]
        return tokens, lengths


def starts_of(lengths: Lengths) -> Lengths:
    """Where each document begins.

    >>> starts_of(np.array([2, 1, 3])).tolist()
    [0, 2, 3]
    """
    return np.cumsum(lengths) - lengths


def end_of_part(lengths: Lengths, held: int, limit: int) -> int:
    """How many documents it takes until `limit` tokens are held.

    Args:
        lengths: (n,) of the documents that come.
        held: tokens before them, fewer than `limit`.
        limit: in tokens.

    Returns:
        1..n; n + 1 where all of them are too few.

    >>> lengths = np.array([2, 2, 2])
    >>> [end_of_part(lengths, 0, limit) for limit in (1, 2, 3, 6, 7)]
    [1, 1, 2, 3, 4]
    """
    return int(np.searchsorted(np.cumsum(lengths), limit - held)) + 1


def chosen_documents(
    tokens: Tokens, lengths: Lengths, chosen: npt.NDArray[np.bool_]
) -> tuple[Tokens, Lengths]:
    """The tokens and lengths of those documents.

    >>> chosen = np.array([True, False, True])
    >>> tokens, lengths = chosen_documents(np.arange(6), np.array([2, 1, 3]), chosen)
    >>> tokens.tolist(), lengths.tolist()
    ([0, 1, 3, 4, 5], [2, 3])
    """
    if chosen.all():
        return tokens, lengths
    return tokens[np.repeat(chosen, lengths)], lengths[chosen]


def shuffled(tokens: Tokens, lengths: Lengths, seed: int, unit: int) -> tuple[Tokens, Lengths]:
    """The documents in an order that depends on the seed and the unit.

    Document `order[i]` comes at place i, with `order` the permutation of the key.
    """
    n = len(lengths)
    order = feistel(np.arange(n), n, round_keys(f"shuffle {seed} {unit}"))
    starts, moved = starts_of(lengths), np.empty_like(tokens)
    filled = 0
    for first in range(0, n, DOCUMENTS_AT_ONCE):
        here = order[first : first + DOCUMENTS_AT_ONCE]
        ends = (starts[here] + lengths[here]).tolist()
        parts = [tokens[a:b] for a, b in zip(starts[here].tolist(), ends, strict=True)]
        part = np.concatenate(parts)
        moved[filled : filled + len(part)] = part
        filled += len(part)
    return moved, lengths[order]
