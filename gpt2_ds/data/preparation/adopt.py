"""A dataset of shards that were made elsewhere: no byte of them is changed or moved."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.data.format.dataset import TOKENIZER_DIRECTORY
from gpt2_ds.data.format.layouts import detect_layout, read_layout
from gpt2_ds.data.format.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Layout,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    read_manifest,
)
from gpt2_ds.data.format.shards import NO_TOKENIZER, ShardHeader, map_tokens, read_index
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.format.verify import PIECE_TOKENS, beyond_fault, first_beyond
from gpt2_ds.data.preparation.progress import DocumentBar
from gpt2_ds.files.checksum import Checksum, sha256_of
from gpt2_ds.files.durable_file import sync

SUFFIXES = (".bin", ".npy")
# In fineweb_val_000000.bin and validation/, but not in medieval.bin or values.npy.
VALIDATION = re.compile(r"(?<![a-z])val(id(ation)?)?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class _Found:
    """A file of tokens whose header was read."""

    directory: Path
    file: str
    layout: Layout
    header: ShardHeader

    @property
    def path(self) -> Path:
        return self.directory / self.file

    @property
    def is_validation(self) -> bool:
        return VALIDATION.search(self.file) is not None

    @property
    def has_our_index(self) -> bool:
        ours = self.header.tokenizer_sha256 != NO_TOKENIZER
        return ours and self.path.with_suffix(".idx").is_file()

    def __str__(self) -> str:
        return f"{self.layout} with {self.header.dtype.name}"


def adopt(directory: Path, tokenizer: Tokenizer) -> Manifest:
    """Make a dataset of a folder of shards: write its manifest and tokenizer beside them.

    Every `.bin` and `.npy` in it is a shard: of llm.c, modded-nanogpt, build-nanogpt, Megatron-LM
    (with the `.idx` beside it), or of this project, without a manifest. Those with `val`, `valid`
    or `validation` as a word of their name or folder are the validation split.

    Args:
        directory: of the shards; searched recursively, dot files skipped.
        tokenizer: the tokens were made with it.

    Returns:
        The manifest.

    Raises:
        UserError: there is no such folder or no shard in it, it is a dataset already, or a file is
            damaged, differs from the others in kind, leads out of the folder, or holds a token
            that the tokenizer does not have.
        RunError: the manifest or the tokenizer could not be written.
    """
    _check_new(directory)
    found = [_read(directory, path) for path in _files(directory)]
    _check_alike(directory, found)
    _check_tokenizer(directory, found, tokenizer)
    progress = DocumentBar(sum(shard.header.file_bytes for shard in found))
    lock = threading.Lock()

    def scan(shard: _Found) -> ShardEntry:
        return _scan(shard, tokenizer, progress, lock)

    # Threads, because hashing and numpy release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = tuple(pool.map(scan, sorted(found, key=lambda shard: shard.is_validation)))
    manifest = Manifest(
        format=FORMAT,
        dtype=cast(Any, found[0].header.dtype.name),
        tokenizer=TokenizerEntry(name=tokenizer.name, sha256=tokenizer.sha256),
        source=None,
        versions={},
        shards=shards,
    )
    try:
        tokenizer.save(directory / TOKENIZER_DIRECTORY)
        for path in [*(directory / TOKENIZER_DIRECTORY).iterdir(), directory / TOKENIZER_DIRECTORY]:
            sync(path)
        manifest.write(directory)
    except OSError as error:
        raise RunError(f"{directory}: could not be written: {error}. No shard was.") from error
    progress.finish()
    return manifest


def _check_new(directory: Path) -> None:
    if not directory.is_dir():
        raise user_error(str(directory), "no such folder", "Name the folder of the shards.")
    if (directory / MANIFEST_FILE).is_file():
        read_manifest(directory)  # refuses a damaged one, or one of another format
        raise user_error(str(directory), "a dataset already", "Use it as it is.")


def _files(directory: Path) -> list[Path]:
    files: list[Path] = []
    seen: dict[Path, Path] = {}
    for path in sorted(_walk(directory)):
        target = path.resolve()
        if path.is_dir() or not target.is_relative_to(directory.resolve()):
            what = f"a link {'to a' if path.is_dir() else 'out of the'} folder, to {target}"
            raise user_error(str(path), what, "Put the files themselves there.")
        if target in seen:
            raise user_error(str(path), f"the same file as {seen[target]}", "Delete the link.")
        seen[target] = path
        files.append(path)
    if not files:
        what = f"no {' or '.join(SUFFIXES)} file in it"
        raise user_error(str(directory), what, "Name the folder of the shards.")
    return files


def _walk(directory: Path) -> Iterator[Path]:
    """Shards, and links to folders, which are not followed."""

    def refuse(error: OSError) -> None:
        what = f"cannot be read ({error.strerror})"
        raise user_error(str(error.filename), what, "Make it readable, or move it away.") from error

    for name, folders, files in os.walk(directory, onerror=refuse):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        yield from (path for folder in folders if (path := Path(name, folder)).is_symlink())
        for file in files:
            if file.endswith(SUFFIXES) and not file.startswith("."):
                yield Path(name, file)


def _read(directory: Path, path: Path) -> _Found:
    layout = detect_layout(path)
    header = read_layout(path, layout)
    if header.n_tokens == 0:
        raise user_error(str(path), "no tokens in it", "Move it away.")
    return _Found(directory, path.relative_to(directory).as_posix(), layout, header)


def _check_alike(directory: Path, found: list[_Found]) -> None:
    for shard in found:
        if str(shard) != str(found[0]):
            raise user_error(
                str(shard.path),
                f"{shard}, and {found[0].path} is {found[0]}",
                "Give each kind a folder of its own, and adopt them one by one.",
            )


def _check_tokenizer(directory: Path, found: list[_Found], tokenizer: Tokenizer) -> None:
    made_with = {
        shard.path: shard.header.tokenizer_sha256
        for shard in found
        if shard.header.tokenizer_sha256 != NO_TOKENIZER
    }
    if (saved := directory / TOKENIZER_DIRECTORY).is_dir():
        made_with[saved] = Tokenizer.open(saved).sha256
    for path, sha256 in made_with.items():
        if sha256 != tokenizer.sha256:
            raise user_error(
                str(path),
                f"made with tokenizer {sha256}, and {tokenizer.name} is {tokenizer.sha256}",
                "Name the tokenizer that the tokens were made with.",
            )


def _scan(
    shard: _Found, tokenizer: Tokenizer, progress: DocumentBar, lock: threading.Lock
) -> ShardEntry:
    path, header = shard.path, shard.header
    checksum = Checksum()
    with path.open("rb") as file:
        checksum.update(file.read(header.offset))
    tokens = map_tokens(path, header)
    documents = 0
    starts: list[npt.NDArray[np.int64]] = []  # kept where there is an index to compare
    for begin in range(0, len(tokens), PIECE_TOKENS):
        piece = tokens[begin : begin + PIECE_TOKENS]
        if (offset := first_beyond(piece, tokenizer.n_vocab)) is not None:
            raise UserError(beyond_fault(path, tokens, begin + offset, tokenizer.n_vocab))
        checksum.update(piece.data)
        here = begin + np.flatnonzero(piece == tokenizer.eot_token)
        documents += len(here)
        if shard.has_our_index:
            starts.append(here)
        with lock:
            progress.add(len(here), piece.nbytes, len(piece))
    index = _checked_index(shard, starts)
    return ShardEntry(
        split="validation" if shard.is_validation else "train",
        file=shard.file,
        layout=shard.layout,
        tokens=len(tokens),
        documents=header.n_documents or documents,
        bytes=checksum.n_bytes,
        sha256=checksum.sha256,
        block_crc32=checksum.block_crc32,
        index_sha256=None if index is None else sha256_of(index),
        index_bytes=0 if index is None else index.stat().st_size,
    )


def _checked_index(shard: _Found, starts: list[npt.NDArray[np.int64]]) -> Path | None:
    """The `.idx` that belongs to a file, if one does."""
    if shard.layout != "megatron" and not shard.has_our_index:
        return None
    index = shard.path.with_suffix(".idx")
    if not index.resolve().is_relative_to(shard.directory.resolve()):
        what = f"a link out of the folder, to {index.resolve()}"
        raise user_error(str(index), what, "Put the file itself there.")
    if shard.has_our_index and not np.array_equal(
        read_index(shard.path, shard.header), np.concatenate(starts)
    ):
        what = f"not where the documents of {shard.path.name} begin: damaged"
        raise user_error(str(index), what, "Delete it, or restore it from where it came from.")
    return index
