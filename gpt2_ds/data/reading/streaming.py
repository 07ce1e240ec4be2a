"""A dataset at a remote address: its small files are copied, its shards when they are needed."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.format.dataset import TOKENIZER_DIRECTORY, Dataset
from gpt2_ds.data.format.manifest import MANIFEST_FILE, ShardEntry
from gpt2_ds.data.format.tokenizer import RANKS_FILE, TOKENIZER_FILE
from gpt2_ds.data.reading.cache import ShardCache
from gpt2_ds.files.durable_file import write_durably
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.tree import in_parallel

SMALL_FILES = (
    f"{TOKENIZER_DIRECTORY}/{RANKS_FILE}",
    f"{TOKENIZER_DIRECTORY}/{TOKENIZER_FILE}",
)


def open_streamed(remote: RemoteFolder, cache: ShardCache) -> Dataset:
    """Open the dataset at a remote address.

    Its manifest and tokenizer are copied into the cache's folder, under the manifest's hash.

    Args:
        remote: the address.
        cache: where its shards go.

    Raises:
        UserError: there is no dataset, its manifest or tokenizer is damaged, or the cache's folder
            cannot be written.
        RunError: the address could not be read.
    """
    manifest = remote.read(MANIFEST_FILE)
    path = cache.folder / "datasets" / hashlib.sha256(manifest).hexdigest()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / ".lock").open("w") as lock:  # the ranks of a machine come at the same time
            fcntl.flock(lock, fcntl.LOCK_EX)
            copy_small_files(remote, path)
            _write_changed(path / MANIFEST_FILE, manifest)
    except OSError as error:
        raise user_error(
            "data.cache_path",
            f"{path} cannot be written ({error.strerror})",
            "Name a folder of your own on a local disk.",
        ) from error

    def locate(entry: ShardEntry) -> Path:
        return cache.path(remote, entry)

    return Dataset.open_small_files(path, locate, remote.address)


def copy_small_files(remote: RemoteFolder, folder: Path) -> None:
    """Copy the files of a dataset that have no hash in its manifest: its tokenizer's.

    Args:
        remote: the dataset's.
        folder: of the dataset on this machine.

    Raises:
        UserError: one is not there, or access is refused.
        RunError: one could not be read.
        OSError: the folder cannot be written.
    """
    (folder / TOKENIZER_DIRECTORY).mkdir(exist_ok=True)
    in_parallel(
        lambda name: _write_changed(folder / name, remote.read(name)), SMALL_FILES, len(SMALL_FILES)
    )


def _write_changed(path: Path, content: bytes) -> None:
    """Write a file, unless it is right: a running job may be copying it into a checkpoint."""
    if not path.exists() or path.read_bytes() != content:
        write_durably(path, [content])
