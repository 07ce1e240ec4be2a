"""A folder at a remote address: each file is read whole and right, or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from gpt2_ds.config.errors import RunError, UserError, user_error, warn
from gpt2_ds.files.claimed_file import TEMPORARY_SUFFIX, allocate, claimed, write_all
from gpt2_ds.files.durable_file import sync
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.files.remote_source import RemoteFault, RemoteSource, Stopped, fault_of, redacted
from gpt2_ds.files.trouble import writing

MAX_READ_BYTES = 64 * 2**20
LONGEST_DELAY_SECONDS = 30.0
_CLAIM_POLL_SECONDS = 0.05
_COPIED_BYTES = 1 << 24

Value = TypeVar("Value")


class WrongBytes(RunError):
    """A file has the right length and the wrong hash."""


@dataclass(frozen=True)
class Wording:
    """The messages of a failure, which depend on what the folder is for.

    Args:
        where: the file, from `{address}`, `{name}` and `{file}`, which is both.
        missing: what is not there.
        missing_fix: what a person does then.
        refused_fix: and when access is refused.
        broken: when all attempts have failed; from `{fault}` and `{attempts}` too.
        wrong: when the bytes were wrong at all attempts; likewise.
    """

    where: str
    missing: str
    missing_fix: str
    refused_fix: str
    broken: str
    wrong: str


_DATASET = Wording(
    where="{address}: {name}",
    missing="there is no such file",
    missing_fix="Check the address: it must be that of a prepared dataset, with manifest.json.",
    refused_fix="Give this machine the right to read it, by credentials in the environment.",
    broken="{name} of {address}: {fault}, at the last of {attempts} attempts.",
    wrong="{name} of {address}: {fault}, at the last of {attempts} attempts.",
)


def is_remote(path: str) -> bool:
    """Whether this names something at a remote address, rather than a path on this machine.

    >>> [is_remote(path) for path in ("s3://bucket/owt", "data/owt", "/data/owt")]
    [True, False, False]
    """
    return "://" in path


class RemoteFolder:
    """The files under one address. Names are relative to it, with forward slashes.

    A failure that may pass (a server's error, a dropped connection, no byte for a while, bytes
    that are too few or wrong) is retried with exponential backoff, each time with a warning.
    Threads may share one; make it after a fork, not before.

    So every method raises, besides its own:

    - `UserError`: access is refused, or the file, or the folder that should hold it, is not there;
    - `RunError`: all attempts failed; or this machine's disk is full, or fails;
    - `Stopped`: `stop` was set.

    Args:
        address: of the folder: s3://, gs://, hf://, https:// or anything else fsspec knows; or a
            path on this machine.
        attempts: in all, the first included.
        attempts_at_wrong_bytes: of a file that has the right length and the wrong hash; None:
            `attempts`.
        first_delay_seconds: before the second attempt; doubles up to 30 seconds.
        stall_seconds: this long without a byte, an attempt to read has failed.
        wording: what is said of a failure.
        heartbeat: beats when a part of a file was read or sent, or an attempt has failed.

    Raises:
        UserError: nothing here knows such addresses, or a package is missing for them.
    """

    def __init__(
        self,
        address: str,
        *,
        attempts: int = 8,
        attempts_at_wrong_bytes: int | None = None,
        first_delay_seconds: float = 0.5,
        stall_seconds: float = 60.0,
        wording: Wording = _DATASET,
        heartbeat: Heartbeat = UNHEARD,
    ) -> None:
        self.address = redacted(address)  # for messages: without password and query
        self.stop = threading.Event()
        self._attempts = {
            "missing": 1,
            "refused": 1,
            "wrong": attempts_at_wrong_bytes or attempts,
            "broken": attempts,
        }
        self._first_delay_seconds = first_delay_seconds
        self._wording = wording
        self._heartbeat = heartbeat
        if not is_remote(address):
            address = f"file://{Path(address).expanduser().absolute()}"
        self._source = RemoteSource(address, stall_seconds)
        self._files: Any = self._source.files
        if address.startswith("file://"):
            # fsspec's own neither calls the callback nor syncs.
            self._files.put_file = _copy_durably

    def at(self, name: str) -> str:
        """The address of a file, for messages."""
        folder, mark, query = self.address.partition("?")
        return f"{folder.rstrip('/')}/{name}".rstrip("/") + mark + query

    def names(self) -> list[str]:
        """Of what is in the folder itself, but for links of a local disk; none: no folder."""

        def names() -> list[str]:
            try:
                found = self._files.ls(self._source.root, detail=True)
            except FileNotFoundError:
                return []
            return [
                entry["name"].rstrip("/").rpartition("/")[2]
                for entry in found
                if not entry.get("islink")
            ]

        return self._done("", names)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file in a folder, by its name in there."""
        root = self._path(folder)

        def sizes() -> dict[str, int]:
            found = self._files.find(root, detail=True)
            # Some file systems give paths with a slash before them, others without.
            inside = f"{root}/".lstrip("/")
            return {
                path.lstrip("/").removeprefix(inside): entry["size"]
                for path, entry in found.items()
            }

        return self._done(folder, sizes)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._done(name, lambda: self._files.exists(self._path(name))))

    def read(self, name: str) -> bytes:
        """All of a small file.

        Raises:
            UserError: it is larger than 64 MiB.
        """
        data = self._tried(name, lambda: self._start_of(name, MAX_READ_BYTES + 1), self.stop)
        if len(data) > MAX_READ_BYTES:
            raise user_error(
                self._where(name),
                f"larger than {MAX_READ_BYTES} bytes",
                self._wording.missing_fix,
            )
        return data

    def read_if_there(self, name: str) -> bytes | None:
        """All of a small file, of a larger one the first 64 MiB; None: there is none."""

        def attempt() -> bytes | None:
            try:
                return self._start_of(name, MAX_READ_BYTES)
            except RemoteFault as fault:
                if fault.kind == "missing":
                    return None
                raise

        return self._tried(name, attempt, self.stop)

    def download(
        self,
        name: str,
        destination: Path,
        n_bytes: int,
        sha256: str,
        stop: threading.Event | None = None,
    ) -> None:
        """Copy a file to this machine: complete, right and on the disk, or not there.

        Args:
            name: of the file.
            destination: on this machine; its folder exists.
            n_bytes: it must have.
            sha256: it must have, in hexadecimal.
            stop: when set, the download ends with `Stopped`; None: the folder's own.

        Raises:
            WrongBytes: the hash was wrong at all attempts.
        """
        temporary = destination.with_name(destination.name + TEMPORARY_SUFFIX)
        stop = stop or self.stop
        while True:
            with claimed(temporary) as file:
                if file is not None:
                    allocate(file, temporary, n_bytes)
                    self.download_into(file, temporary, name, n_bytes, sha256, stop)
                    with writing(temporary, n_bytes):
                        os.fsync(file.fileno())
                        temporary.rename(destination)
                        sync(destination.parent)
                    return
            if stop.wait(_CLAIM_POLL_SECONDS):  # another process downloads the same file
                raise Stopped

    def download_into(
        self, file: FileIO, path: Path, name: str, n_bytes: int, sha256: str, stop: threading.Event
    ) -> None:
        """Fill an open file. `path` is where it is, for messages; the rest is as for `download`.

        Raises:
            WrongBytes: as for `download`.
        """

        def attempt() -> None:
            file.seek(0)
            digest, got = hashlib.sha256(), 0
            with closing(self._source.chunks(name, n_bytes + 1, stop)) as chunks:
                try:
                    for data in chunks:
                        got += len(data)
                        if got <= n_bytes:
                            digest.update(data)
                            write_all(file, path, data)
                        self._heartbeat.beat()
                except RemoteFault as fault:
                    raise RemoteFault(f"{fault}, {got} of {n_bytes} bytes", fault.kind) from fault
            if got != n_bytes:
                came = f"more than {n_bytes}" if got > n_bytes else str(got)
                raise RemoteFault(f"{came} bytes came, expected {n_bytes}")
            if digest.hexdigest() != sha256:
                raise RemoteFault(f"sha256 {digest.hexdigest()} came, expected {sha256}", "wrong")

        self._tried(name, attempt, stop)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self._done(name, lambda: self._files.pipe_file(self._path(name), content))

    def send(self, local: Path, name: str) -> None:
        """Copy a file of this machine there."""
        from fsspec.callbacks import Callback

        sent = Callback(hooks={"sent": lambda size, value, **_: self._heartbeat.beat()})
        self._done(name, lambda: self._files.put_file(str(local), self._path(name), callback=sent))

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all in it; nothing when there is none."""

        def remove() -> None:
            try:
                self._files.rm(self._path(name), recursive=True)
            except FileNotFoundError:
                return

        self._done(name, remove)

    def _path(self, name: str) -> str:
        return f"{self._source.root.rstrip('/')}/{name}"

    def _start_of(self, name: str, n_bytes: int) -> bytes:
        with closing(self._source.chunks(name, n_bytes, self.stop)) as chunks:
            return b"".join(chunks)

    def _done(self, name: str, call: Callable[[], Value]) -> Value:
        """What a call of fsspec gives, retried as `_tried` does."""

        def attempt() -> Value:
            try:
                return call()
            except RunError:  # a disk of this machine
                raise
            except Exception as error:
                raise fault_of(error) from error

        return self._tried(name, attempt, self.stop)

    def _tried(self, name: str, attempt: Callable[[], Value], stop: threading.Event) -> Value:
        number = 0
        while True:
            number += 1
            try:
                return attempt()
            except RemoteFault as fault:
                attempts = self._attempts[fault.kind]
                if number >= attempts:
                    raise self._final(name, fault, number) from fault
                delay = min(LONGEST_DELAY_SECONDS, self._first_delay_seconds * 2 ** (number - 1))
                delay *= random.uniform(0.5, 1.0)  # jitter: many ranks must not retry at once
                warn(
                    f"{self.at(name)}: {fault}: attempt {number + 1} of {attempts} in {delay:.1f} s"
                )
            self._heartbeat.beat()
            if stop.wait(delay):
                raise Stopped

    def _final(self, name: str, fault: RemoteFault, attempts: int) -> UserError | RunError:
        wording = self._wording
        if fault.kind == "missing":
            return user_error(self._where(name), wording.missing, wording.missing_fix)
        if fault.kind == "refused":
            return user_error(self._where(name), f"access is refused: {fault}", wording.refused_fix)
        if fault.kind == "wrong":
            return WrongBytes(self._filled(wording.wrong, name, fault=fault, attempts=attempts))
        return RunError(self._filled(wording.broken, name, fault=fault, attempts=attempts))

    def _where(self, name: str) -> str:
        return self._filled(self._wording.where, name)

    def _filled(self, text: str, name: str, **more: object) -> str:
        return text.format(address=self.address, name=name, file=self.at(name), **more)


def _copy_durably(local: str, there: str, callback: Any) -> None:
    path = Path(there)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(local).open("rb") as source, path.open("wb", buffering=0) as target:
        while data := source.read(_COPIED_BYTES):
            write_all(target, path, data)
            callback.relative_update(len(data))
        os.fsync(target.fileno())
