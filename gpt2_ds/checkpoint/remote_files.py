"""Files at an address, to read and to write: through fsspec, tried again, its errors in words."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from gpt2_ds.config.errors import RunError, user_error
from gpt2_ds.files.claimed_file import allocate, write_all, writing
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.files.remote_files import MAX_READ_BYTES, is_remote
from gpt2_ds.files.remote_source import RemoteFault, RemoteSource, Stopped, fault_of, redacted

_LONGEST_DELAY_SECONDS = 30.0
_PIECE_BYTES = 1 << 24

Value = TypeVar("Value")


def warn(text: str) -> None:
    """A line on standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class RemoteFiles:
    """A folder at an address. Names in it are relative, with forward slashes.

    What fails in a way that may pass is tried again after a while, and said on standard error.
    So every method raises, besides its own:

    - `UserError`: access is refused, or the folder (bucket) that should hold a file is not there;
    - `RunError`: it could not be done, again and again;
    - `Stopped`: `stop` was set between two attempts.

    Args:
        address: s3://, gs://, or a path.
        attempts: how often to try in all.
        first_delay_seconds: before the second attempt; doubles up to 30 seconds.
        stall_seconds: this long without a byte, a reading has failed.
        heartbeat: beats when a part of a file has come or gone, or an attempt has failed.

    Raises:
        UserError: nothing here knows such addresses or can write to them, or a package is missing.
    """

    def __init__(
        self,
        address: str,
        *,
        attempts: int,
        first_delay_seconds: float,
        stall_seconds: float,
        heartbeat: Heartbeat = UNHEARD,
    ) -> None:
        self.address = redacted(address).rstrip("/")  # for messages
        self.stop = threading.Event()
        self._attempts, self._first_delay_seconds = attempts, first_delay_seconds
        self._heartbeat = heartbeat
        if address.startswith(("http://", "https://")):
            raise user_error(self.address, "cannot be written to", "Give s3://, gs:// or a path.")
        if not is_remote(address):
            address = f"file://{Path(address).expanduser().absolute()}"
        self._source = RemoteSource(address, stall_seconds)
        self._files, self._root = _connect(address)

    def at(self, name: str) -> str:
        """The address of a file, for messages."""
        return f"{self.address}/{name}".rstrip("/")

    def names(self) -> list[str]:
        """Of what lies in the folder itself, links of a local disk left out; none: no folder."""

        def names() -> list[str]:
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
            return [
                each["name"].rstrip("/").rpartition("/")[2]
                for each in found
                if not each.get("islink")
            ]

        return self._tried("", names)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file in a folder, by its name in there."""
        root = self._path(folder)

        def sizes() -> dict[str, int]:
            found = self._files.find(root, detail=True)
            # Of some file systems with a slash before them, of others without.
            inside = f"{root}/".lstrip("/")
            return {
                name.lstrip("/").removeprefix(inside): each["size"] for name, each in found.items()
            }

        return self._tried(folder, sizes)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._tried(name, lambda: self._files.exists(self._path(name))))

    def read(self, name: str) -> bytes | None:
        """All of a small file; None: there is none."""

        def read() -> bytes | None:
            try:
                with closing(self._source.chunks(name, MAX_READ_BYTES, self.stop)) as chunks:
                    return b"".join(chunks)
            except RemoteFault as fault:
                if fault.kind == "missing":
                    return None
                raise

        return self._tried(name, read)

    def write(self, name: str, content: bytes) -> None:
        """A small file."""
        self._tried(name, lambda: self._files.pipe_file(self._path(name), content))

    def send(self, local: Path, name: str) -> None:
        """Copy a file of this machine there."""
        from fsspec.callbacks import Callback

        sent = Callback(hooks={"sent": lambda size, value, **_: self._heartbeat.beat()})
        self._tried(name, lambda: self._files.put_file(str(local), self._path(name), callback=sent))

    def fetch(self, name: str, path: Path, n_bytes: int) -> str:
        """Copy a file to this machine, onto its disk.

        Args:
            name: of the file.
            path: on this machine; what is there is replaced.
            n_bytes: that it has; what comes after them is left.

        Returns:
            The sha256 of what came.

        Raises:
            RunError: this machine's disk is full, or fails.
        """
        with writing(path, n_bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            file = FileIO(path, "w")

        def fetch() -> str:
            digest = hashlib.sha256()
            file.seek(0)
            with closing(self._source.chunks(name, n_bytes, self.stop)) as chunks:
                for data in chunks:
                    digest.update(data)
                    write_all(file, path, data)
                    self._heartbeat.beat()
            return digest.hexdigest()

        with file:
            allocate(file, path, n_bytes)
            sha256 = self._tried(name, fetch)
            with writing(path, n_bytes):
                os.fsync(file.fileno())
        return sha256

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all in it; nothing when there is none."""

        def remove() -> None:
            try:
                self._files.rm(self._path(name), recursive=True)
            except FileNotFoundError:
                return

        self._tried(name, remove)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _tried(self, name: str, call: Callable[[], Value]) -> Value:
        for number in range(1, self._attempts + 1):
            try:
                return call()
            except (RunError, Stopped):  # of this machine's disk; the run has ended
                raise
            except Exception as error:
                fault = error if isinstance(error, RemoteFault) else fault_of(error)
                self._raise_if_final(name, fault, number)
            self._heartbeat.beat()
            delay = min(_LONGEST_DELAY_SECONDS, self._first_delay_seconds * 2 ** (number - 1))
            warn(
                f"{self.at(name)}: {fault}: attempt {number + 1} of {self._attempts} in "
                f"{delay:.1f} s"
            )
            if self.stop.wait(delay):
                raise Stopped
        raise AssertionError("the last attempt returned or raised")

    def _raise_if_final(self, name: str, fault: RemoteFault, number: int) -> None:
        if fault.kind == "missing":
            raise user_error(
                self.at(name),
                "there is no such file or folder",
                "Make the folder (bucket) first, and check the address: checkpoint.copy_to.",
            ) from fault
        if fault.kind == "refused":
            raise user_error(
                self.at(name),
                f"access is refused: {fault}",
                "Give this machine the right to read and to write it, by credentials in the "
                "environment.",
            ) from fault
        if number == self._attempts:
            raise RunError(
                f"{self.at(name)}: {fault}, at the last of {number} attempts. See whether this "
                "machine reaches it, then give the same command again."
            ) from fault


def _connect(address: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it; `RemoteSource` has found the address usable."""
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if address.startswith("file://"):
        options["auto_mkdir"] = True
        files, root = fsspec.core.url_to_fs(address, **options)
        files.put_file = _copy_durably  # its own neither says how far it is nor reaches the disk
        return files, root
    if address.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
    files, root = fsspec.core.url_to_fs(address, **options)
    if hasattr(files, "retries"):
        files.retries = 1  # s3fs: all retries are ours, and said
    return files, root


def _copy_durably(local: str, there: str, callback: Any) -> None:
    path = Path(there)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(local).open("rb") as source, path.open("wb", buffering=0) as target:
        while data := source.read(_PIECE_BYTES):
            write_all(target, path, data)
            callback.relative_update(len(data))
        os.fsync(target.fileno())
