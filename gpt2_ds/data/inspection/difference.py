"""How two datasets differ: what they were made of, and the first token that differs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import numpy as np

from gpt2_ds.config.numbers import counted
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.layouts import tokens_of
from gpt2_ds.data.format.manifest import SplitName
from gpt2_ds.data.format.split import Tokens
from gpt2_ds.data.format.verify import PIECE_TOKENS
from gpt2_ds.data.inspection.inspection import Report, about

TOKENS_AROUND = 10


def diff(a: Path | str, b: Path | str) -> Report:
    """What differs between two datasets: what they are made of, and the first token that differs.

    Args:
        a: a dataset.
        b: another.

    Returns:
        The differences; fine if the two are the same data, with one fingerprint.

    Raises:
        UserError: one of them is not there, or broken.
    """
    left, right = Dataset.open(a), Dataset.open(b)
    lines: list[str] = []
    for dataset, other in ((left, right), (right, left)):
        known = about(other)
        lines += [f"{dataset.path}: {line}" for line in about(dataset) if line not in known]
    for split in get_args(SplitName):
        lines += _split_difference(left, right, split)
    is_same = left.fingerprint == right.fingerprint
    lines.append("the same data" if is_same else "not the same data: the fingerprints differ")
    return Report(lines, is_same)


def _split_difference(left: Dataset, right: Dataset, split: SplitName) -> Iterator[str]:
    left_entries, right_entries = left.entries(split), right.entries(split)
    pairs = list(zip_longest(left_entries, right_entries))
    differing = [(x, y) for x, y in pairs if not (x and y and x.sha256 == y.sha256)]
    if not differing:
        return
    for dataset, entries in ((left, left_entries), (right, right_entries)):
        n_tokens = sum(entry.tokens for entry in entries)
        shards = counted(len(entries), "shard", form=",")
        yield f"{split}: {shards}, {n_tokens:,} tokens in {dataset.path}"
    x, y = differing[0]
    yield f"{split}: {len(differing):,} of {len(pairs):,} shards differ, first {(x or y).file}"
    if x is None or y is None:
        yield f"{split}: it is in one of them only"
        return
    sides = [
        (dataset, dataset.path / entry.file, entry) for dataset, entry in ((left, x), (right, y))
    ]
    left_tokens, right_tokens = (tokens_of(path, entry) for _, path, entry in sides)
    offset = first_difference(left_tokens, right_tokens)
    if offset is None:
        yield f"{split}: in it all tokens are equal, and the rest of the file is not"
        return
    yield f"{split}: in it the first token that differs is at offset {offset:,}"
    for (dataset, path, _), tokens in zip(sides, (left_tokens, right_tokens), strict=True):
        around = tokens[max(0, offset - TOKENS_AROUND) : offset + TOKENS_AROUND]
        here = tokens[offset] if offset < len(tokens) else "none"
        yield f"  {path}: {here}, in {dataset.tokenizer.decode(around)!r}"


def first_difference(left: Tokens, right: Tokens) -> int | None:
    """The offset of the first token that differs, or that one of the two lacks; None: equal.

    >>> first_difference(np.array([1, 2, 3]), np.array([1, 5, 3]))
    1
    """
    shared = min(len(left), len(right))
    for begin in range(0, shared, PIECE_TOKENS):
        end = min(shared, begin + PIECE_TOKENS)
        if (unequal := left[begin:end] != right[begin:end]).any():
            return begin + int(np.argmax(unequal))
    return None if len(left) == len(right) else shared
