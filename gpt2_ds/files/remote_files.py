"""A dataset's folder at a remote address: files that come whole and right, or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import TypeVar

from gpt2_ds.config.errors import RunError, user_error
from gpt2_ds.files.claimed_file import TEMPORARY_SUFFIX, allocate, claimed, write_all, writing
from gpt2_ds.files.durable_file import sync
from gpt2_ds.files.remote_source import RemoteFault, RemoteSource, Stopped, redacted

MAX_READ_BYTES = 64 * 2**20
LONGEST_DELAY_SECONDS = 30.0
_CLAIM_POLL_SECONDS = 0.05

Value = TypeVar("Value")


def is_remote(path: str) -> bool:
    """Whether this names something at a remote address, rather than a path on this machine.

    >>> [is_remote(path) for path in ("s3://bucket/owt", "data/owt", "/data/owt")]
    [True, False, False]
    """
    return "://" in path


class RemoteFolder:
    """The files of one dataset at a remote address.

    What fails in a way that may pass (a server's error, a dropped connection, no byte for a
    while, bytes that are too few or wrong) is tried again after a while, and each time is said on
    standard error. Threads may share one; make it after a fork, not before.

    Args:
        address: of the folder: s3://, gs://, hf://, https:// or anything else fsspec knows.
        attempts: how often to try in all.
        first_delay_seconds: before the second attempt; doubles up to 30 seconds.
        stall_seconds: this long without a byte is a failure.

    Raises:
        UserError: nothing here knows such addresses, or a package is missing for them.
    """

    def __init__(
        self,
        address: str,
        *,
        attempts: int = 8,
        first_delay_seconds: float = 0.5,
        stall_seconds: float = 60.0,
    ) -> None:
        self.address = redacted(address)  # for messages: without password and query
        self._attempts = attempts
        self._first_delay_seconds = first_delay_seconds
        self._source = RemoteSource(address, stall_seconds)

    def read(self, name: str) -> bytes:
        """All of a small file.

        Raises:
            UserError: it is not there, access is refused, or it is larger than 64 MiB.
            RunError: it could not be read.
        """
        never = threading.Event()

        def attempt() -> bytes:
            with closing(self._source.chunks(name, MAX_READ_BYTES + 1, never)) as chunks:
                return b"".join(chunks)

        data = self._tried(name, attempt, never)
        if len(data) > MAX_READ_BYTES:
            raise user_error(
                f"{self.address}: {name}",
                f"larger than {MAX_READ_BYTES} bytes",
                "Check the address: it must be that of a prepared dataset.",
            )
        return data

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
            name: relative to the address.
            destination: on this machine; its folder exists.
            n_bytes: it must have.
            sha256: it must have, in hexadecimal.
            stop: when set, the download ends with `Stopped`.

        Raises:
            UserError: it is not there, or access is refused.
            RunError: what came, again and again, was not what was expected; or the disk is full.
            Stopped: `stop` was set.
        """
        temporary = destination.with_name(destination.name + TEMPORARY_SUFFIX)
        stop = stop or threading.Event()
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
            if stop.wait(_CLAIM_POLL_SECONDS):  # another process is at the same file
                raise Stopped

    def download_into(
        self, file: FileIO, path: Path, name: str, n_bytes: int, sha256: str, stop: threading.Event
    ) -> None:
        """Fill an open file. `path` is where it is, for messages; the rest is as for `download`.

        Raises:
            UserError: as for `download`; so are the others.
            RunError: see there.
            Stopped: see there.
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
                except RemoteFault as fault:
                    raise RemoteFault(f"{fault}, {got} of {n_bytes} bytes", fault.kind) from fault
            if got != n_bytes:
                came = f"more than {n_bytes}" if got > n_bytes else str(got)
                raise RemoteFault(f"{came} bytes came, expected {n_bytes}")
            if digest.hexdigest() != sha256:
                raise RemoteFault(f"sha256 {digest.hexdigest()} came, expected {sha256}")

        self._tried(name, attempt, stop)

    def _tried(self, name: str, attempt: Callable[[], Value], stop: threading.Event) -> Value:
        for number in range(1, self._attempts + 1):
            try:
                return attempt()
            except RemoteFault as fault:
                self._raise_if_final(name, fault, number)
                delay = min(LONGEST_DELAY_SECONDS, self._first_delay_seconds * 2 ** (number - 1))
                delay *= random.uniform(0.5, 1.0)  # so that many ranks do not come at once
                print(
                    f"{name} of {self.address}: {fault}: attempt {number + 1} of "
                    f"{self._attempts} in {delay:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
                stop.wait(delay)  # when set, the next attempt ends at once
        raise AssertionError("the last attempt returned or raised")

    def _raise_if_final(self, name: str, fault: RemoteFault, number: int) -> None:
        if fault.kind == "missing":
            raise user_error(
                f"{self.address}: {name}",
                "there is no such file",
                "Check the address: it must be that of a prepared dataset, with manifest.json.",
            ) from fault
        if fault.kind == "refused":
            raise user_error(
                f"{self.address}: {name}",
                f"access is refused: {fault}",
                "Give this machine the right to read it, by credentials in the environment.",
            ) from fault
        if number == self._attempts:
            raise RunError(
                f"{name} of {self.address}: {fault}, at the last of {number} attempts."
            ) from fault
