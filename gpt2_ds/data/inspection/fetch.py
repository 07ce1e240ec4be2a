"""A whole dataset copied from a remote address to this machine."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.data.format.dataset import TOKENIZER_DIRECTORY
from gpt2_ds.data.format.manifest import MANIFEST_FILE, Manifest, parse_manifest
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.inspection.inspection import Report
from gpt2_ds.data.reading.streaming import copy_small_files
from gpt2_ds.files.claimed_file import claimed
from gpt2_ds.files.durable_file import sync, write_durably
from gpt2_ds.files.progress_bar import ProgressBar
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.tree import WORKERS, ExpectedFile, fetch_files, missing_files
from gpt2_ds.files.trouble import writing

# The manifest, under this name until all else is there: an incomplete copy is not a dataset.
PARTIAL_FILE = "manifest.json.part"
LOCK_FILE = ".fetch.tmp"


def fetch(address: str, out: Path, workers: int = WORKERS) -> Report:
    """Copy the dataset at `address` into the folder `out`, checking every file.

    Interrupted, it resumes when called again: what is there and right stays.

    Args:
        address: of the dataset.
        out: a folder that is new, empty, or holds this dataset, whole or in part.
        workers: downloads at a time.

    Raises:
        UserError: there is no dataset, access is refused, or `out` holds something else.
        RunError: a file could not be downloaded or written, or another process fetches into `out`.
    """
    remote = RemoteFolder(address)
    raw = remote.read(MANIFEST_FILE)
    manifest = parse_manifest(raw, f"{remote.address}/{MANIFEST_FILE}")
    _require_place(out, raw, remote)
    with writing(out, 0, "--out"):
        out.mkdir(parents=True, exist_ok=True)
    with claimed(out / LOCK_FILE) as lock:
        if lock is None:
            raise RunError(f"{out}: another process is fetching into it.")
        files = _files(manifest)
        if any((out / file.name).exists() for file in files):
            print(f"{out}: checking the files that are there", file=sys.stderr, flush=True)
        missing = missing_files(out, files)
        if (out / MANIFEST_FILE).exists() and not missing and _tokenizer_fits(out, manifest):
            print(f"{out}: the whole of {remote.address} is there", file=sys.stderr, flush=True)
            return Report([f"{out} is ready"])
        if not (out / MANIFEST_FILE).exists():
            with writing(out / PARTIAL_FILE, len(raw)):
                write_durably(out / PARTIAL_FILE, [raw])
        _copy_tokenizer(remote, out, manifest)
        with ProgressBar(sum(file.n_bytes for file in missing)) as bar:
            fetch_files(remote, missing, out, workers=workers, tell=bar.advance_to)
            bar.finish()
        with writing(out / MANIFEST_FILE, 0):
            if (out / PARTIAL_FILE).exists():
                (out / PARTIAL_FILE).rename(out / MANIFEST_FILE)
            sync(out)
    return Report([f"{out} is ready"])


def _files(manifest: Manifest) -> list[ExpectedFile]:
    found = []
    for shard in manifest.shards:
        found.append(ExpectedFile(shard.file, shard.bytes, shard.sha256))
        if shard.index_sha256 is not None:
            index = str(PurePosixPath(shard.file).with_suffix(".idx"))
            found.append(ExpectedFile(index, shard.index_bytes, shard.index_sha256))
    return found


def _require_place(out: Path, raw: bytes, remote: RemoteFolder) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise user_error(str(out), "a file, not a folder", "Give a folder with --out.")
    for name in (MANIFEST_FILE, PARTIAL_FILE):
        if (out / name).exists():
            if (out / name).read_bytes() != raw:
                raise user_error(
                    str(out / name),
                    f"another dataset than the one at {remote.address}",
                    "Give another folder with --out, or delete this one.",
                )
            return
    if foreign := sorted(path.name for path in out.iterdir() if path.name != LOCK_FILE):
        raise user_error(
            str(out),
            f"not empty, and not begun by fetch: it has {', '.join(foreign[:3])}",
            "Give a new or empty folder with --out.",
        )


def _tokenizer_fits(out: Path, manifest: Manifest) -> bool:
    try:
        return Tokenizer.open(out / TOKENIZER_DIRECTORY).sha256 == manifest.tokenizer.sha256
    except UserError:
        return False


def _copy_tokenizer(remote: RemoteFolder, out: Path, manifest: Manifest) -> None:
    with writing(out / TOKENIZER_DIRECTORY, 0):
        copy_small_files(remote, out)
    got = Tokenizer.open(out / TOKENIZER_DIRECTORY).sha256
    if got != manifest.tokenizer.sha256:
        raise user_error(
            f"{remote.address}: {TOKENIZER_DIRECTORY}",
            f"sha256 {got}, and {MANIFEST_FILE} says {manifest.tokenizer.sha256}",
            "The dataset at this address is damaged: copy it there again.",
        )
