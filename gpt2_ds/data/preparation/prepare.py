"""Text to a dataset: token shards, their tokenizer and a manifest, complete or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import platform
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import RunError, user_error
from gpt2_ds.data.dataset import TOKENIZER_DIRECTORY
from gpt2_ds.data.durable_file import sync
from gpt2_ds.data.manifest import (
    FORMAT,
    MANIFEST_FILE,
    InputEntry,
    Manifest,
    ShardEntry,
    Skipped,
    Source,
    SplitName,
    TokenizerEntry,
)
from gpt2_ds.data.preparation.encoding_pool import Arrays, Block, encode_blocks
from gpt2_ds.data.preparation.progress import Progress
from gpt2_ds.data.preparation.sources import Document, Input, OnBad, find_inputs, read_documents
from gpt2_ds.data.shards import write_shard
from gpt2_ds.data.tokenizer import Tokenizer

SHARD_TOKENS = 2**25  # 64 MiB of uint16
BLOCK_BYTES = 2**20


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    workers: int = 1,
    text_field: str = "text",
    validation_fraction: float = 0.001,
    validation_inputs: Sequence[str | Path] = (),
    on_bad: OnBad = "error",
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Turn text into a dataset at `out`.

    The documents are cut into units by bytes of text, and each unit makes one train shard; so
    the bytes of the result are the same for any number of workers.

    Args:
        inputs: files, folders or `python-stdlib`: see `gpt2_ds.data.preparation.sources`.
        out: a directory that is not there yet; it appears under this name when complete.
        tokenizer: goes into the dataset.
        workers: processes that encode.
        text_field: of a row of JSON lines, its text.
        validation_fraction: of documents, chosen by a hash of the text, so that the choice does
            not depend on files or order; unused with `validation_inputs`.
        validation_inputs: if given, the whole validation split.
        on_bad: "error" stops at a bad document, "skip" counts it in the manifest.
        shard_tokens: about how many tokens a shard has.

    Returns:
        The manifest.

    Raises:
        UserError: `out` is taken, an argument is out of range, an input is missing or bad, or no
            token is left to train on.
        RunError: a worker died, or the disk refused to be written. `out` is not there then.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise user_error(f"--out {out}", "there already", "Name another --out, or delete it.")
    if workers < 1:
        raise user_error("--workers", f"{workers} is below 1", "Use 1 or more.")
    if not 0 <= validation_fraction < 1:
        raise user_error(
            "--validation-fraction", f"{validation_fraction} is not in [0, 1)", "Use 0.001, say."
        )
    train, validation = find_inputs(inputs), []
    if validation_inputs:
        validation = find_inputs(validation_inputs, others=train)
        validation_fraction = 0.0
    skipped: Counter[str] = Counter()

    def read(chosen: Sequence[Input]) -> Iterator[Document]:
        return read_documents(chosen, text_field=text_field, on_bad=on_bad, skipped=skipped)

    unit_bytes = shard_tokens * (1 if tokenizer.name == "bytes" else 4)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        blocks = _blocks(read(train), read(validation), validation_fraction, unit_bytes)
        progress = Progress(sum(each.n_bytes for each in [*train, *validation]))
        shards = _write_shards(temporary, blocks, tokenizer, workers, shard_tokens, progress)
        if not any(shard.split == "train" for shard in shards):
            raise user_error(
                f"input {', '.join(map(str, inputs))}",
                f"nothing to train on: {sum(shard.documents for shard in shards)} documents for "
                f"validation, {skipped.total()} skipped",
                "Give more documents, or a smaller --validation-fraction.",
            )
        manifest = Manifest(
            format=FORMAT,
            dtype="uint16" if tokenizer.dtype.itemsize == 2 else "uint32",
            tokenizer=TokenizerEntry(name=tokenizer.name, sha256=tokenizer.sha256),
            source=Source(
                inputs=_entries(train),
                validation_inputs=_entries(validation),
                validation_fraction=validation_fraction,
                text_field=text_field,
                document_separator=None,
                shuffle_seed=None,
                duplicates=None,
                skipped={
                    why: Skipped(count=count, first=()) for why, count in sorted(skipped.items())
                },
            ),
            versions={
                "python": platform.python_version(),
                "numpy": np.__version__,
                "tiktoken": importlib.metadata.version("tiktoken"),
            },
            shards=tuple(shards),
        )
        _sync_directories(temporary)
        manifest.write(temporary)
        temporary.rename(out)  # fails where something has come to be there since
        sync(out.parent)
    except OSError as error:
        raise RunError(f"{out}: could not be written: {error}. Nothing was left there.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    progress.finish()
    return manifest


def _entries(inputs: Sequence[Input]) -> tuple[InputEntry, ...]:
    return tuple(
        InputEntry(name=each.name, files=len(each.files), bytes=each.n_bytes) for each in inputs
    )


def _is_validation(data: bytes, fraction: float) -> bool:
    """Whether the hash of a text, as a number in [0, 1), is below the fraction.

    >>> [_is_validation(data, 0.5) for data in (b"a", b"b", b"c", b"d")]
    [False, True, True, True]
    """
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") < fraction * 2**64


def _blocks(
    train: Iterator[Document],
    validation: Iterator[Document],
    validation_fraction: float,
    unit_bytes: int,
) -> Iterator[Block]:
    """All documents in blocks; no block is of two units, no unit of both inputs."""
    unit = 0
    for documents, fraction in ((train, validation_fraction), (validation, 1.0)):
        block = Block(unit)
        bytes_in_block = bytes_in_unit = 0
        for document in documents:
            data = document.text.encode("utf-8", "surrogatepass")
            block.texts.append(document.text)
            block.is_validation.append(_is_validation(data, fraction))
            block.input_bytes += document.input_bytes
            bytes_in_block += len(data)
            bytes_in_unit += len(data)
            if bytes_in_unit >= unit_bytes:
                unit, bytes_in_unit = unit + 1, 0
            elif bytes_in_block < BLOCK_BYTES:
                continue
            yield block
            block, bytes_in_block = Block(unit), 0
        if block.texts:
            yield block
        unit += 1


def _write_shards(
    directory: Path,
    blocks: Iterator[Block],
    tokenizer: Tokenizer,
    workers: int,
    shard_tokens: int,
    progress: Progress,
) -> list[ShardEntry]:
    tokenizer.save(directory / TOKENIZER_DIRECTORY)
    train = _SplitWriter(directory, "train", tokenizer)
    validation = _SplitWriter(directory, "validation", tokenizer)
    unit = 0
    for block, arrays in encode_blocks(blocks, directory / TOKENIZER_DIRECTORY, workers):
        if block.unit != unit:
            train.write(number=unit)
            unit = block.unit
        for tokens, is_validation in zip(arrays, block.is_validation, strict=True):
            (validation if is_validation else train).add(tokens)
            if is_validation and validation.held_tokens >= shard_tokens:
                validation.write(number=len(validation.entries))
        progress.add(len(arrays), block.input_bytes, sum(map(len, arrays)))
    train.write(number=unit)
    validation.write(number=len(validation.entries))
    return train.entries + validation.entries


class _SplitWriter:
    """Holds whole documents until they are written as a shard."""

    def __init__(self, directory: Path, split: SplitName, tokenizer: Tokenizer) -> None:
        self.entries: list[ShardEntry] = []
        self.held: Arrays = []
        self.held_tokens = 0
        self._directory = directory
        self._split: SplitName = split
        self._tokenizer = tokenizer

    def add(self, tokens: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        self.held.append(tokens)
        self.held_tokens += len(tokens)

    def write(self, number: int) -> None:
        if not self.held:
            return
        lengths = [len(tokens) for tokens in self.held]
        self.entries.append(
            write_shard(
                self._directory,
                f"{self._split}/shard-{number:05d}.bin",
                self._split,
                np.concatenate(self.held),
                np.cumsum([0, *lengths[:-1]]),
                eot_token=self._tokenizer.eot_token,
                tokenizer_sha256=self._tokenizer.sha256,
            )
        )
        self.held, self.held_tokens = [], 0


def _sync_directories(directory: Path) -> None:
    """Make durable what is in `directory` and in the folders in it."""
    for path in [*directory.glob("*/*"), *directory.glob("*/"), directory]:
        sync(path)


def ensure_prepared(path: Path, prepare_call: Callable[[], object]) -> None:
    """Prepare the dataset at `path` unless it is there; several processes may ask at once.

    One prepares, the others wait for it. The lock is a file beside `path`, which stays.

    Args:
        path: of the dataset.
        prepare_call: makes it.
    """
    if (path / MANIFEST_FILE).is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / MANIFEST_FILE).is_file():
            prepare_call()
