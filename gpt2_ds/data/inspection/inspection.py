"""What a dataset holds, and whether it is as it was written."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.config.numbers import counted
from gpt2_ds.data.format.dataset import TOKENIZER_DIRECTORY, Dataset
from gpt2_ds.data.format.layouts import megatron_documents, tokens_of
from gpt2_ds.data.format.manifest import (
    MANIFEST_FILE,
    InputEntry,
    Manifest,
    ShardEntry,
    Source,
    SplitName,
    read_manifest,
)
from gpt2_ds.data.format.split import Tokens
from gpt2_ds.data.format.tokenizer import RANKS_FILE, TOKENIZER_FILE, Tokenizer
from gpt2_ds.data.format.verify import PIECE_TOKENS, verify_shard
from gpt2_ds.data.preparation.progress import DocumentBar

SAMPLE_CHARACTERS = 200
SAMPLE_SEED = 0
BAR_CHARACTERS = 40
NAMED_FILES = 10


@dataclass(frozen=True)
class Report:
    """What was found.

    Args:
        lines: to print.
        is_fine: whether the answer is yes, where there was a question.
    """

    lines: list[str]
    is_fine: bool = True


def verify(directory: Path | str) -> Report:
    """Read every file of a dataset and compare it with what was written.

    Args:
        directory: of the dataset.

    Returns:
        That all is well, and which files in the folder are not part of the dataset, but for those
        whose name begins with a dot.

    Raises:
        UserError: with a fault for each damaged file, not for the first alone.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    faults: list[Fault] = []
    n_vocab: int | None = None
    try:
        n_vocab = Tokenizer.open(directory / TOKENIZER_DIRECTORY).n_vocab
    except UserError as error:
        faults += error.faults

    def check(entry: ShardEntry) -> tuple[Fault, ...]:
        try:
            verify_shard(directory / entry.file, entry, n_vocab=n_vocab)
        except UserError as error:
            return error.faults
        return ()

    progress = DocumentBar(sum(entry.bytes for entry in manifest.shards))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        for entry, found in zip(manifest.shards, pool.map(check, manifest.shards), strict=True):
            faults += found
            progress.add(entry.documents, entry.bytes, entry.tokens)
    progress.finish()
    if faults:
        raise UserError(*faults)
    Dataset.open(directory)  # what no hash shows: a tokenizer or a link that leads elsewhere
    lines = [
        f"{counted(len(manifest.shards), 'shard')}, {progress.n_bytes:,} bytes: all as written"
    ]
    others = _other_files(directory, manifest)
    lines += [f"not part of the dataset: {name}" for name in others[:NAMED_FILES]]
    if len(others) > NAMED_FILES:
        lines.append(f"not part of the dataset: {len(others) - NAMED_FILES:,} more")
    return Report(lines)


def _other_files(directory: Path, manifest: Manifest) -> list[str]:
    part = {
        MANIFEST_FILE,
        *(f"{TOKENIZER_DIRECTORY}/{name}" for name in (RANKS_FILE, TOKENIZER_FILE)),
    }
    for entry in manifest.shards:
        part.add(Path(entry.file).as_posix())
        if entry.index_sha256 is not None:
            part.add(Path(entry.file).with_suffix(".idx").as_posix())
    files = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    seen = {
        file.as_posix() for file in files if not any(name.startswith(".") for name in file.parts)
    }
    return sorted(seen - part)


def stats(directory: Path | str, samples: int = 0) -> Report:
    """What a dataset is made of, and how long its documents are.

    Args:
        directory: of the dataset.
        samples: how many documents to show the beginning of, always the same ones.

    Raises:
        UserError: there is no dataset, it is broken, or `samples` is below 0.
    """
    if samples < 0:
        raise user_error("--samples", f"{samples} is below 0", "Use 0 or more.")
    dataset = Dataset.open(directory)
    lines = about(dataset)
    n_documents: list[int] = []
    for split in get_args(SplitName):
        entries, lengths = dataset.entries(split), Counter[int]()
        for entry in entries:
            tokens, starts = _documents(dataset, entry)
            values, counts = np.unique(np.diff(starts, append=len(tokens)), return_counts=True)
            lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            n_documents.append(len(starts))
        n_tokens = sum(entry.tokens for entry in entries)
        shards = counted(len(entries), "shard", form=",")
        documents = counted(lengths.total(), "document", form=",")
        lines.append(f"{split}: {shards}, {n_tokens:,} tokens, {documents}")
        lines += _length_lines(lengths)
    return Report([*lines, *_sample_lines(dataset, n_documents, samples)])


def summary(manifest: Manifest, directory: Path) -> list[str]:
    """Lines on a dataset that was just made: tokens a split, what was skipped, what to do next.

    Args:
        manifest: of the dataset.
        directory: of the dataset.
    """
    lines = []
    for split in get_args(SplitName):
        shards = [shard for shard in manifest.shards if shard.split == split]
        n_tokens = sum(shard.tokens for shard in shards)
        n_documents = sum(shard.documents for shard in shards)
        lines.append(
            f"{split}: {n_tokens:,} tokens, {counted(n_documents, 'document', form=',')}, "
            f"{counted(len(shards), 'shard')}"
        )
    if manifest.source is not None:
        lines += _skipped_lines(manifest.source)
    return [
        *lines,
        f"{directory} is ready. Next: set data.path to {directory} in a recipe of recipes/, then",
        "  deepspeed launch/train.py --recipe recipes/RECIPE.yaml",
    ]


def about(dataset: Dataset) -> list[str]:
    """Lines on a dataset's tokenizer, and on what it was made of."""
    tokenizer = dataset.tokenizer
    return [
        f"tokenizer: {tokenizer.name}, {tokenizer.n_vocab:,} tokens, sha256 {tokenizer.sha256}",
        f"stored as: {dataset.manifest.dtype}",
        *_source_lines(dataset.manifest),
    ]


def _source_lines(manifest: Manifest) -> Iterator[str]:
    source = manifest.source
    if source is None:
        yield "source: made elsewhere, and adopted"
        return
    for entry in source.inputs:
        yield f"input: {_described(entry)}"
    for entry in source.validation_inputs:
        yield f"input for validation: {_described(entry)}"
    if not source.validation_inputs:
        yield f"validation: {source.validation_fraction:g} of the documents, by a hash of the text"
    yield f"text field: {source.text_field}"
    if source.document_separator is not None:
        yield f"document separator: {source.document_separator!r}"
    if source.shuffle_seed is not None:
        yield f"shuffled with seed: {source.shuffle_seed}"
    yield from _skipped_lines(source)
    n_bytes = [entry.bytes for entry in (*source.inputs, *source.validation_inputs)]
    if n_bytes and all(n_bytes):
        n_tokens = sum(entry.tokens for entry in manifest.shards)
        yield f"tokens a byte of input: {n_tokens / sum(n_bytes):.3f}"


def _skipped_lines(source: Source) -> Iterator[str]:
    """How many documents were skipped, why, and where the first of them were."""
    for why, skipped in source.skipped.items():
        more = ["..."] if skipped.count > len(skipped.first) else []
        where = f" ({'; '.join([*skipped.first, *more])})" if skipped.first else ""
        yield f"skipped: {skipped.count:,} {why}{where}"
    if source.duplicates is not None:
        yield f"duplicates skipped: {source.duplicates:,}"


def _described(entry: InputEntry) -> str:
    of_hub = {"config": entry.config, "split": entry.split, "revision": entry.revision}
    parts = [f"{key} {value}" for key, value in of_hub.items() if value is not None]
    if entry.files:
        parts += [counted(entry.files, "file", form=","), f"{entry.bytes:,} bytes"]
    return ", ".join([entry.name, *parts])


def _documents(dataset: Dataset, entry: ShardEntry) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """All tokens of a shard, and where its documents begin."""
    path = dataset.path / entry.file
    tokens = tokens_of(path, entry)
    if entry.layout == "megatron":
        return tokens, megatron_documents(path)
    eot = dataset.tokenizer.eot_token
    starts = [
        begin + np.flatnonzero(tokens[begin : begin + PIECE_TOKENS] == eot)
        for begin in range(0, len(tokens), PIECE_TOKENS)
    ]
    return tokens, np.concatenate([np.empty(0, np.int64), *starts])


def _length_lines(lengths: Counter[int]) -> Iterator[str]:
    """Of documents by length in tokens."""
    if not lengths:
        return
    mean = sum(length * count for length, count in lengths.items()) / lengths.total()
    yield (
        f"  tokens a document, end-of-text included: mean {mean:,.1f}, "
        f"median {quantile(lengths, 0.5):,}, p90 {quantile(lengths, 0.9):,}, "
        f"max {max(lengths):,}"
    )
    buckets = Counter[int]()
    for length, count in lengths.items():
        buckets[length.bit_length()] += count
    for bits in range(min(buckets), max(buckets) + 1):
        bar = "#" * -(-BAR_CHARACTERS * buckets[bits] // max(buckets.values()))
        begin, end = 1 << bits >> 1, (1 << bits) - 1
        yield f"  {begin:>13,} to {end:>13,}  {bar:<{BAR_CHARACTERS}}  {buckets[bits]:,}"


def quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least this share of all counted ones does not pass.

    >>> quantile(Counter({10: 1, 20: 2, 30: 1}), 0.5)
    20
    """
    values = sorted(counts)
    below = np.cumsum([counts[value] for value in values])
    return values[int(np.searchsorted(below, share * counts.total()))]


def _sample_lines(dataset: Dataset, n_documents: list[int], n_samples: int) -> Iterator[str]:
    """Some documents, from shards in the order of the manifest with `n_documents` each."""
    before = np.cumsum([0, *n_documents])
    chosen = random.Random(SAMPLE_SEED).sample(
        range(int(before[-1])), min(n_samples, int(before[-1]))
    )
    shards = np.searchsorted(before, chosen, side="right") - 1
    for number, shard in sorted(zip(chosen, shards.tolist(), strict=True)):
        entry = dataset.manifest.shards[shard]
        tokens, starts = _documents(dataset, entry)
        begin, end = np.append(starts, len(tokens))[number - before[shard] :][:2].tolist()
        # A character has at most 4 bytes, a token at least one; end-of-text is at one of the ends.
        ids = tokens[begin : min(end, begin + 4 * SAMPLE_CHARACTERS + 1)]
        text = dataset.tokenizer.decode(ids[ids != dataset.tokenizer.eot_token])
        yield f"{entry.file}, token {begin:,}: {text[:SAMPLE_CHARACTERS]!r}"
