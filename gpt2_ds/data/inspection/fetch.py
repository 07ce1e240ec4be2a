"""A whole dataset copied from a remote address to this machine."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.data.format.manifest import MANIFEST_FILE, Manifest, parse_manifest
from gpt2_ds.data.format.tokenizer import RANKS_FILE, TOKENIZER_FILE, Tokenizer
from gpt2_ds.files.claimed_file import claimed
from gpt2_ds.files.durable_file import sha256_of, sync, write_durably
from gpt2_ds.files.remote_files import RemoteFolder

# The manifest, under this name until all else is there: an incomplete copy is no dataset.
PARTIAL_FILE = "manifest.json.part"
LOCK_FILE = ".fetch.tmp"
REPORT_SECONDS = 5.0
_TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class _Piece:
    file: str
    n_bytes: int
    sha256: str


def fetch(address: str, out: Path, workers: int = 4) -> None:
    """Copy the dataset at `address` into the folder `out`.

    Broken off, it goes on where it was when called again: what is there and right stays.

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
    out.mkdir(parents=True, exist_ok=True)
    with claimed(out / LOCK_FILE) as lock:
        if lock is None:
            raise RunError(f"{out}: another process is fetching into it.")
        missing = _missing(out, _pieces(manifest), workers)
        if (out / MANIFEST_FILE).exists() and not missing and _tokenizer_fits(out, manifest):
            print(f"{out}: the whole of {remote.address} is there", file=sys.stderr, flush=True)
            return
        _require_disk(out, missing)
        if not (out / MANIFEST_FILE).exists():
            write_durably(out / PARTIAL_FILE, [raw])
        _copy_tokenizer(remote, out, manifest)
        _download_all(remote, out, missing, workers)
        if (out / PARTIAL_FILE).exists():
            (out / PARTIAL_FILE).rename(out / MANIFEST_FILE)
        sync(out)


def _pieces(manifest: Manifest) -> list[_Piece]:
    found = []
    for shard in manifest.shards:
        found.append(_Piece(shard.file, shard.bytes, shard.sha256))
        if shard.index_sha256 is not None:
            index = str(PurePosixPath(shard.file).with_suffix(".idx"))
            found.append(_Piece(index, shard.index_bytes, shard.index_sha256))
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


def _missing(out: Path, pieces: list[_Piece], workers: int) -> list[_Piece]:
    if any((out / piece.file).exists() for piece in pieces):
        print(f"{out}: checking the files that are there", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(workers) as pool:
        there = pool.map(lambda piece: _is_there(out / piece.file, piece), pieces)
        return [piece for piece, is_there in zip(pieces, there, strict=True) if not is_there]


def _is_there(path: Path, piece: _Piece) -> bool:
    if not path.is_file() or path.stat().st_size != piece.n_bytes:
        return False
    return sha256_of(path) == piece.sha256


def _require_disk(out: Path, missing: list[_Piece]) -> None:
    needed, free = sum(piece.n_bytes for piece in missing), shutil.disk_usage(out).free
    if needed > free:
        raise RunError(f"{out}: the disk is full: {needed} bytes are needed, {free} are free.")


def _tokenizer_fits(out: Path, manifest: Manifest) -> bool:
    try:
        return Tokenizer.open(out / _TOKENIZER).sha256 == manifest.tokenizer.sha256
    except UserError:
        return False


def _copy_tokenizer(remote: RemoteFolder, out: Path, manifest: Manifest) -> None:
    (out / _TOKENIZER).mkdir(exist_ok=True)
    for name in (RANKS_FILE, TOKENIZER_FILE):
        write_durably(out / _TOKENIZER / name, [remote.read(f"{_TOKENIZER}/{name}")])
    got = Tokenizer.open(out / _TOKENIZER).sha256
    if got != manifest.tokenizer.sha256:
        raise user_error(
            f"{remote.address}: {_TOKENIZER}",
            f"sha256 {got}, and {MANIFEST_FILE} says {manifest.tokenizer.sha256}",
            "The dataset at this address is damaged: copy it there again.",
        )


def _download_all(remote: RemoteFolder, out: Path, missing: list[_Piece], workers: int) -> None:
    for folder in {(out / piece.file).parent for piece in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
        waiting = {
            pool.submit(
                remote.download, piece.file, out / piece.file, piece.n_bytes, piece.sha256, stop
            ): piece
            for piece in missing
        }
        report = _Report(sum(piece.n_bytes for piece in missing))
        try:
            left = set(waiting)
            while left:
                done, left = wait(left, timeout=REPORT_SECONDS, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                    report.done_bytes += waiting[future].n_bytes
                report.show()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _Report:
    """How far the copy is, on standard error: a line every few seconds, and one at the end."""

    def __init__(self, total_bytes: int) -> None:
        self.done_bytes = 0
        self._total_bytes = total_bytes
        self._began = time.monotonic()

    def show(self) -> None:
        seconds = max(1e-9, time.monotonic() - self._began)
        print(
            f"{self.done_bytes / 1e6:,.1f} of {self._total_bytes / 1e6:,.1f} MB in "
            f"{seconds:,.1f} s ({self.done_bytes / 1e6 / seconds:,.1f} MB/s)",
            file=sys.stderr,
            flush=True,
        )
