"""How two datasets differ: what they were made of, and where their tokens part."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import numpy as np

from gpt2_ds.config.numbers import counted
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.manifest import SplitName
from gpt2_ds.data.format.verify import PIECE_TOKENS
from gpt2_ds.data.inspection.inspection import Report, Tokens, about, tokens_of

TOKENS_AROUND = 10


def diff(a: Path | str, b: Path | str) -> Report:
    """What differs between two datasets: what they are made of, and where their tokens part.

    Args:
        a: a dataset.
        b: another.

    Returns:
        The differences; fine if the two are the same data, with one fingerprint.

    Raises:
        UserError: one of them is not there, or broken.
    """
    one, two = Dataset.open(a), Dataset.open(b)
    lines: list[str] = []
    for mine, theirs in ((one, two), (two, one)):
        known = about(theirs)
        lines += [f"{mine.path}: {line}" for line in about(mine) if line not in known]
    for split in get_args(SplitName):
        lines += _split_difference(one, two, split)
    is_same = one.fingerprint == two.fingerprint
    lines.append("the same data" if is_same else "not the same data: the fingerprints differ")
    return Report(lines, is_same)


def _split_difference(one: Dataset, two: Dataset, split: SplitName) -> Iterator[str]:
    mine, theirs = one.entries(split), two.entries(split)
    pairs = list(zip_longest(mine, theirs))
    other = [n for n, (x, y) in enumerate(pairs) if not (x and y and x.sha256 == y.sha256)]
    if not other:
        return
    for dataset, entries in ((one, mine), (two, theirs)):
        n_tokens = sum(entry.tokens for entry in entries)
        shards = counted(len(entries), "shard", form=",")
        yield f"{split}: {shards}, {n_tokens:,} tokens in {dataset.path}"
    x, y = pairs[other[0]]
    yield f"{split}: {len(other):,} of {len(pairs):,} shards differ, first {(x or y).file}"
    if x is None or y is None:
        yield f"{split}: it is in one of them only"
        return
    sides = [(one, x, tokens_of(one.path / x.file, x)), (two, y, tokens_of(two.path / y.file, y))]
    offset = first_difference(sides[0][2], sides[1][2])
    if offset is None:
        yield f"{split}: in it all tokens are equal, and the rest of the file is not"
        return
    yield f"{split}: in it the first token that differs is at offset {offset:,}"
    for dataset, entry, tokens in sides:
        around = tokens[max(0, offset - TOKENS_AROUND) : offset + TOKENS_AROUND]
        here = tokens[offset] if offset < len(tokens) else "none"
        text = dataset.tokenizer.decode(around)
        yield f"  {dataset.path / entry.file}: {here}, in {text!r}"


def first_difference(one: Tokens, two: Tokens) -> int | None:
    """The offset of the first token that differs, or that one of the two lacks; None: equal.

    >>> first_difference(np.array([1, 2, 3]), np.array([1, 5, 3]))
    1
    """
    shared = min(len(one), len(two))
    for begin in range(0, shared, PIECE_TOKENS):
        end = min(shared, begin + PIECE_TOKENS)
        if (unequal := one[begin:end] != two[begin:end]).any():
            return begin + int(np.argmax(unequal))
    return None if len(one) == len(two) else shared
