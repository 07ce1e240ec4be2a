"""The bytes of a file at a remote address as they arrive, and what kind of failure it was."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
from collections.abc import Coroutine, Generator
from contextlib import closing
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from gpt2_ds.config.errors import UserError, nearest, user_error

CHUNK_BYTES = 2**20
# A file system that cannot stream is asked for ranges of this size.
RANGE_BYTES = 16 * 2**20
_CANCEL_POLL_SECONDS = 0.1
_PACKAGES = {
    **dict.fromkeys(["http", "https"], "aiohttp"),
    **dict.fromkeys(["s3", "s3a"], "s3fs"),
    **dict.fromkeys(["gs", "gcs"], "gcsfs"),
    **dict.fromkeys(["az", "abfs", "abfss", "adl"], "adlfs"),
    "hf": "huggingface_hub",
}
# Of 400 to 499, those that ask to try again: timeout, too early, too many requests.
_TRANSIENT_STATUS = {408, 425, 429}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}

Value = TypeVar("Value")


class RemoteFault(Exception):
    """A file could not be read from its address.

    Args:
        what: went wrong, in one line without secrets.
        kind: `missing` and `refused` are permanent; `broken` may pass; so may `wrong` bytes, if
            the network made them wrong.
    """

    def __init__(
        self, what: str, kind: Literal["missing", "refused", "wrong", "broken"] = "broken"
    ) -> None:
        super().__init__(what)
        self.kind = kind


class Stopped(Exception):
    """The caller no longer wants the file."""


def redacted(text: str) -> str:
    """The text without what may be secret in its addresses: user, password and query.

    >>> redacted("GET https://me:secret@host/data/a.bin?X-Amz-Signature=12 failed")
    'GET https://***@host/data/a.bin?*** failed'
    """
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"<>)]+", r"\1?***", text)


class RemoteSource:
    """The files under one address, through fsspec.

    Args:
        address: of the folder, with "://".
        stall_seconds: this long without a byte is a failure.

    Raises:
        UserError: nothing here knows such addresses, or a package is missing for them.
    """

    def __init__(self, address: str, stall_seconds: float) -> None:
        self._address = address
        self._stall_seconds = stall_seconds
        self._protocol = address.partition("://")[0]
        self.files, self.root = self._connect()  # fsspec's file system, and the path in it

    def chunks(self, name: str, limit: int, stop: threading.Event) -> Generator[bytes]:
        """Pieces of at most a MiB of one file, in one go from its beginning.

        Args:
            name: of the file, relative to the address.
            limit: bytes; no more are read.
            stop: when set, reading ends with `Stopped`.

        Returns:
            An iterator; close it if it is not read to its end.

        Raises:
            RemoteFault: it cannot be read.
            Stopped: `stop` was set.
        """
        left = limit
        try:
            if stop.is_set():
                raise Stopped
            path = self._path(name)
            with closing(_Pieces(self.files, path, self._stall_seconds, stop)) as pieces:
                while left and (data := pieces.read(min(left, CHUNK_BYTES))):
                    left -= len(data)
                    yield data
                    if stop.is_set():
                        raise Stopped
        except Stopped:
            raise
        except Exception as error:
            raise fault_of(error) from error

    def _connect(self) -> tuple[Any, str]:
        import fsspec  # 0.1 s, which a local dataset need not wait for

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            if self._protocol in ("http", "https"):
                options |= _http_options()
            elif self._protocol in ("s3", "s3a"):
                options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
            elif self._protocol == "file":
                options["auto_mkdir"] = True  # as in a bucket, a file needs no folder
            files, root = fsspec.core.url_to_fs(self._address, **options)
        except ImportError as error:
            package = _PACKAGES.get(self._protocol)
            fix = f'Install it: pip install {package} "fsspec<={fsspec.__version__}"'
            raise user_error(
                redacted(self._address),
                f"{self._protocol}:// needs the package {package or str(error)!r}",
                f"{fix}." if package else "Install what it names.",
            ) from error
        except ValueError as error:
            raise self._unknown(error) from error
        if hasattr(files, "retries"):
            files.retries = 1  # s3fs: all retries are ours, each with a warning
        return files, root

    def _unknown(self, error: ValueError) -> UserError:
        import fsspec

        if self._protocol in fsspec.available_protocols():
            return user_error(redacted(self._address), redacted(str(error)), "Correct it.")
        return user_error(
            redacted(self._address),
            f"no kind of address that is known: {self._protocol}://",
            nearest(self._protocol, _PACKAGES),
        )

    def _path(self, name: str) -> str:
        if self._protocol not in ("http", "https"):
            return f"{self.root.rstrip('/')}/{name}"
        folder, mark, query = self._address.partition("?")
        return f"{folder.rstrip('/')}/{quote(name)}{mark}{query}"


def _http_options() -> dict[str, Any]:
    import aiohttp

    return {
        "encoded": True,  # a signature in the address stays as it was given
        "client_kwargs": {
            # Ours is per read; aiohttp's own would end any download after 5 minutes.
            "timeout": aiohttp.ClientTimeout(total=None),
            "headers": {"Accept-Encoding": "identity"},
            "trust_env": True,  # HTTP_PROXY and its kin
            "read_bufsize": CHUNK_BYTES,
        },
    }


class _Pieces:
    """One open file: in a single stream where fsspec can, in ranges elsewhere."""

    def __init__(self, files: Any, path: str, stall_seconds: float, stop: threading.Event):
        self._loop = files.loop if getattr(files, "async_impl", False) else None
        self._stall_seconds = stall_seconds
        self._stop = stop
        self._file = self._open(files, path)

    def _open(self, files: Any, path: str) -> Any:
        if self._loop is not None:
            # With a size, whatever it is, http sends no request that asks for it.
            size = {"size": 1} if path.startswith("http") else {}
            try:
                return self._wait(files.open_async(path, "rb", **size))
            except NotImplementedError:
                self._loop = None
        is_hub = type(files).__name__ == "HfFileSystem"
        return files.open(path, "rb", block_size=0 if is_hub else RANGE_BYTES, cache_type="none")

    def read(self, n_bytes: int) -> bytes:
        """The next bytes: at least one and at most `n_bytes`; none at the end of the file."""
        if self._loop is None:
            data: bytes = self._file.read(n_bytes)
            return data
        return self._wait(self._read(n_bytes))

    def close(self) -> None:
        """Close the connection."""
        if self._loop is None:
            self._file.close()
        else:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop)

    async def _read(self, n_bytes: int) -> bytes:
        async with asyncio.timeout(self._stall_seconds):
            data: bytes = await self._file.read(n_bytes)
        return data

    async def _close(self) -> None:
        # The response of both fsspec's http and s3fs, whose own close leaves it open.
        if (response := getattr(self._file, "r", None)) is not None:
            response.close()
            self._file.r = None
        self._file.closed = True  # its close() is a coroutine, which __del__ would not await

    def _wait(self, work: Coroutine[Any, Any, Value]) -> Value:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)  # type: ignore[arg-type]
        try:
            while not concurrent.futures.wait([future], _CANCEL_POLL_SECONDS).done:
                if self._stop.is_set():
                    raise Stopped
            return future.result()
        finally:
            future.cancel()


def fault_of(error: Exception) -> RemoteFault:
    """What an error of fsspec, or of a library under it, means for the caller."""
    status = _status(error)
    said = redacted(" ".join(f"{type(error).__name__} {error}".split()))[:300]
    what = f"HTTP {status} ({said})" if status else said
    if isinstance(error, TimeoutError):
        return RemoteFault(f"no byte came in time ({said})")
    if isinstance(error, FileNotFoundError | IsADirectoryError) or status in (404, 410):
        return RemoteFault("there is no such file", "missing")
    denied = isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS
    permanent = status is not None and 400 <= status < 500 and status not in _TRANSIENT_STATUS
    return RemoteFault(what, "refused" if denied or permanent else "broken")


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp or gcsfs, of httpx, or of botocore under s3fs."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    for name in ("status", "code"):
        found = found or getattr(error, name, None)
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return found if isinstance(found, int) else None
