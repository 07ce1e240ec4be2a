"""A dataset of given tokens, without going through text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.manifest import Manifest, SplitName, TokenizerEntry
from gpt2_ds.data.format.shards import write_shard
from gpt2_ds.data.format.tokenizer import load_tokenizer

EOT = 256


def make_dataset(
    directory: Path,
    train: Sequence[npt.NDArray[Any]],
    validation: Sequence[npt.NDArray[Any]] = (),
) -> Dataset:
    tokenizer = load_tokenizer("bytes")
    tokenizer.save(directory / "tokenizer")
    entries = []
    splits: list[tuple[SplitName, Sequence[npt.NDArray[Any]]]] = [
        ("train", train),
        ("validation", validation),
    ]
    for split, shards in splits:
        for number, tokens in enumerate(shards):
            entries.append(
                write_shard(
                    directory,
                    f"{split}/shard-{number:05d}.bin",
                    split,
                    tokens.astype(np.uint16),
                    np.flatnonzero(tokens == EOT),
                    eot_token=EOT,
                    tokenizer_sha256=tokenizer.sha256,
                )
            )
    Manifest(
        format=2,
        dtype="uint16",
        tokenizer=TokenizerEntry(name="bytes", sha256=tokenizer.sha256),
        source=None,
        versions={},
        shards=tuple(entries),
    ).write(directory)
    return Dataset.open(directory)
