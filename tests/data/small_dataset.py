"""A dataset of given tokens, without going through text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.data.dataset import Dataset
from gpt2_ds.data.manifest import Manifest, ShardEntry, Source, SplitName, TokenizerEntry
from gpt2_ds.data.shards import write_shard
from gpt2_ds.data.tokenizer import load_tokenizer

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
            path = directory / split / f"shard-{number:05d}.bin"
            path.parent.mkdir(exist_ok=True)
            header, sha256 = write_shard(
                path,
                tokens.astype(np.uint16),
                np.flatnonzero(tokens == EOT),
                eot_token=EOT,
                tokenizer_sha256=tokenizer.sha256,
            )
            entries.append(
                ShardEntry(
                    split=split,
                    file=path.relative_to(directory).as_posix(),
                    tokens=header.n_tokens,
                    documents=header.n_documents,
                    bytes=header.file_bytes,
                    sha256=sha256,
                )
            )
    Manifest(
        format=1,
        dtype="uint16",
        tokenizer=TokenizerEntry(name="bytes", sha256=tokenizer.sha256),
        source=Source(
            inputs=(), validation_inputs=(), validation_fraction=0.0, text_field="text", skipped={}
        ),
        versions={},
        shards=tuple(entries),
    ).write(directory)
    return Dataset.open(directory)
