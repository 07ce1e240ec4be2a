"""Text to a dataset: token shards, their tokenizer and a manifest, complete or not there at all.

The work is in `.NAME.partial` beside the dataset, unit by unit (`partial_folder`, `units`). Killed
at any moment, the same call resumes after the last complete unit. The result is the same to the
byte, also with another number of workers.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import platform
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from gpt2_ds.config.errors import Fault, RunError, UserError, user_error
from gpt2_ds.config.numbers import counted
from gpt2_ds.data.format.dataset import TOKENIZER_DIRECTORY
from gpt2_ds.data.format.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    read_manifest,
)
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.preparation.blocks import read_blocks
from gpt2_ds.data.preparation.disk_space import bytes_still_needed, full_disk, is_full_disk
from gpt2_ds.data.preparation.encoding_pool import encode_blocks
from gpt2_ds.data.preparation.partial_folder import (
    Counts,
    PartialFolder,
    locked_folder,
    partial_path,
)
from gpt2_ds.data.preparation.progress import DocumentBar
from gpt2_ds.data.preparation.reading import BEGINNING, Position
from gpt2_ds.data.preparation.ready_request import COMMITS, ReadyRequest
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.data.preparation.sources import find_inputs
from gpt2_ds.data.preparation.units import UnitWriter
from gpt2_ds.files.durable_file import sync


def prepare(request: Request) -> Manifest:
    """Turn text into a dataset at `request.out`, which appears under this name when complete.

    Returns:
        The manifest.

    Raises:
        UserError: `out` is taken, an input is missing or bad, the tokenizer is unknown, an
            earlier start with the same `out` was asked for something else, or no token is left
            to train on.
        RunError: a worker died, the disk is full or refuses to be written, the hub cannot be
            read, or Ctrl-C was pressed. `out` is not there then, and the same call resumes.
    """
    out = request.out
    tokenizer = load_tokenizer(request.tokenizer)
    if request.validation:
        request = request.model_copy(update={"validation_fraction": 0.0})
    if _is_taken(out) and not partial_path(out).exists():
        raise _taken(out)
    try:
        with locked_folder(out) as folder, _saying_what_is_kept(folder):
            commits = (folder.stored_job or {}).get(COMMITS, {})
            ready = ReadyRequest(request, tokenizer, *find_inputs(request, commits))
            return _prepare(ready, folder)
    except OSError as error:
        raise RunError(f"{out}: could not be written: {error}.") from error


@contextmanager
def _saying_what_is_kept(folder: PartialFolder) -> Iterator[None]:
    """Add to every error what is kept; nothing is, where the user is wrong from the start.

    Raises:
        UserError: as it came.
        RunError: in place of Ctrl-C, a disk that refuses, a damaged file of hashes.
    """
    try:
        yield
    except UserError as error:
        if not folder.shards and folder.is_ours:
            folder.remove()
            raise
        if not folder.is_ours:
            raise
        faults = (
            Fault(fault.where, fault.what, fault.fix + _kept(folder)) for fault in error.faults
        )
        raise UserError(*faults) from error
    except KeyboardInterrupt as error:
        raise RunError(f"Stopped by Ctrl-C.{_kept(folder)}") from error
    except RunError as error:
        raise RunError(f"{error}{_kept(folder)}") from error
    except (OSError, sqlite3.Error) as error:
        what = f"{folder.path}: could not be written: {error}."
        raise RunError(f"{what}{_kept(folder)}") from error


def _kept(folder: PartialFolder) -> str:
    if not folder.shards:
        return " The same command begins again."
    return f" Complete shards kept: {len(folder.shards)}. The same command resumes."


def _prepare(ready: ReadyRequest, folder: PartialFolder) -> Manifest:
    """Make all units and the manifest, then give the dataset its name."""
    request = ready.request
    needed_bytes: Callable[[], int] = partial(bytes_still_needed, 0, ready.total_bytes, 0)
    try:
        folder.begin(ready.job)
        if _is_taken(request.out):
            if not folder.is_published:
                raise _taken(request.out)
            folder.remove()  # an earlier start was killed when only this was still to be done
            return read_manifest(request.out)
        folder.clear_unfinished()
        ready.tokenizer.save(folder.dataset / TOKENIZER_DIRECTORY)
        writer = UnitWriter(folder, ready.tokenizer, request, ready.total_bytes)
        needed_bytes = writer.needed_bytes
        with closing(writer):
            progress = _encode(ready, folder, writer)
            shards = writer.finish()
        if not any(shard.split == "train" for shard in shards):
            raise _nothing_to_train_on(ready, writer.counts)
        manifest = _manifest(ready, shards, writer.counts)
        _sync_directories(folder.dataset)
        manifest.write(folder.dataset)
        folder.publish(request.out)
    except (OSError, sqlite3.Error) as error:
        if is_full_disk(error):
            folder.clear_unfinished()  # which may make most of the room that is needed
            raise full_disk(folder.path, needed_bytes()) from error
        raise
    progress.finish()
    return manifest


def _encode(ready: ReadyRequest, folder: PartialFolder, writer: UnitWriter) -> DocumentBar:
    """All documents that come after the last complete unit."""
    request = ready.request
    blocks = read_blocks(
        ready.train,
        ready.validation,
        text_field=request.text_field,
        document_separator=request.document_separator,
        on_bad=request.on_bad,
        start=Position(*folder.records[-1].position) if folder.records else BEGINNING,
    )
    progress = DocumentBar(ready.total_bytes, writer.counts.input_bytes)
    # Closed at once, so that after an error no worker is left.
    with closing(encode_blocks(blocks, ready.tokenizer, request.workers)) as results:
        for block, encoded in results:
            writer.add(block, encoded)
            n_tokens = len(encoded.tokens)
            progress.add(len(block.texts), block.text_bytes, n_tokens, block.input_bytes)
    return progress


def _nothing_to_train_on(ready: ReadyRequest, counts: Counts) -> UserError:
    documents = counted(counts.documents, "document")
    n_skipped = sum(skipped.count for skipped in counts.skipped.values())
    return user_error(
        f"input {', '.join(source.name for source in ready.train)}",
        f"nothing to train on: {documents} for validation, {n_skipped} skipped",
        "Give more documents, or a smaller --validation-fraction.",
    )


def _manifest(ready: ReadyRequest, shards: Sequence[ShardEntry], counts: Counts) -> Manifest:
    packages = ["tiktoken", *(["datasets"] if ready.has_hub else [])]
    return Manifest(
        format=FORMAT,
        dtype="uint16" if ready.tokenizer.dtype.itemsize == 2 else "uint32",
        tokenizer=TokenizerEntry(name=ready.tokenizer.name, sha256=ready.tokenizer.sha256),
        source=ready.source(counts),
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        shards=tuple(shards),
    )


def _is_taken(out: Path) -> bool:
    return out.exists() or out.is_symlink()


def _taken(out: Path) -> UserError:
    return user_error(f"--out {out}", "there already", "Name another --out, or delete it.")


def _sync_directories(directory: Path) -> None:
    """Make durable what is in `directory` and in the folders in it."""
    for path in [*directory.glob("*/*"), *directory.glob("*/"), directory]:
        sync(path)


def ensure_prepared(path: Path, prepare_call: Callable[[], object]) -> None:
    """Prepare the dataset at `path` unless it is there; several processes may call at once.

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
