"""Bytes and lines of plain and compressed files and of standard input, in constant memory.

Every reader of a stream asks for it in pieces of `READ_BYTES` from the beginning on (or seeks, in a
plain file), so that reading a damaged file ends after the same byte each time.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

READ_BYTES = 2**16
LOOK_AHEAD_BYTES = 2**20
COMPRESSED_SUFFIXES = (".gz", ".zst")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors put it first


class DamagedError(Exception):
    """A compressed file ends too early, or is not compressed."""


class ByteStream:
    """Bytes, a piece at a time.

    Args:
        read: at most so many bytes of text; none at the end.
        tell: how many bytes of the file, which may be compressed, were read.
        seek: go to this byte of the text; None: only by reading up to it.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        tell: Callable[[], int],
        seek: Callable[[int], int] | None = None,
    ) -> None:
        self.file_bytes = 0
        self._read = read
        self._tell = tell
        self._seek = seek
        self._unread = b""

    def read(self) -> bytes:
        """The next piece; empty at the end.

        Raises:
            DamagedError: what is compressed cannot be unpacked from here on.
            OSError: the file cannot be read.
        """
        if self._unread:
            piece, self._unread = self._unread, b""
            return piece
        try:
            piece = self._read(READ_BYTES)
        except (EOFError, zlib.error) as error:
            raise DamagedError(str(error)) from error
        except OSError as error:
            if error.errno is None:  # pyarrow and gzip say so of data that they cannot unpack
                raise DamagedError(str(error)) from error
            raise
        self.file_bytes = self._tell()
        return piece

    def skip(self, n_bytes: int) -> int:
        """Go to byte `n_bytes` of the text, at the beginning of reading.

        Returns:
            The CRC-32 of what was skipped; 0 where the file could be sought.
        """
        if self._seek is not None:
            self._seek(n_bytes)
            return 0
        crc32 = 0
        while n_bytes and (piece := self.read()):
            crc32 = zlib.crc32(piece[:n_bytes], crc32)
            self._unread = piece[n_bytes:]
            n_bytes -= len(piece) - len(self._unread)
        return crc32

    def first_character(self) -> bytes:
        """The first byte that is not white space, and stays unread; empty: there is none.

        For the beginning of a stream. Skips a byte order mark, and at most a MiB of white space.
        """
        while not (piece := self._unread).lstrip() and len(piece) < LOOK_AHEAD_BYTES:
            self._unread = b""
            more = self.read()
            self._unread = piece + more
            if not more:
                break
        return self._unread.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]


@contextmanager
def open_stream(file: Path) -> Iterator[ByteStream]:
    """The text of a file, unpacked if its name ends in .gz or .zst.

    Raises:
        OSError: it cannot be opened.
    """
    suffix = file.suffix.lower()
    with file.open("rb", buffering=0) as raw:
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield ByteStream(unpacked.read1, raw.tell)
        elif suffix == ".zst":
            import pyarrow

            with pyarrow.PythonFile(raw, mode="r") as source:
                with pyarrow.CompressedInputStream(source, "zstd") as unpacked:
                    yield ByteStream(unpacked.read, raw.tell)
        else:
            yield ByteStream(raw.read, raw.tell, raw.seek)


def standard_input() -> ByteStream:
    """What comes in by a pipe."""
    stream = sys.stdin.buffer
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    return ByteStream(read, lambda: 0)


class Lines:
    """The lines of a stream, each with its newline; None in place of one that is too long.

    Args:
        stream: what to cut.
        limit: of a line, in bytes.

    Attributes:
        offset: bytes of text up to the end of the last line.
        crc32: of these bytes, as far as they were read.
    """

    def __init__(self, stream: ByteStream, limit: int) -> None:
        self.offset = self.crc32 = 0
        self._stream = stream
        self._limit = limit

    def skip(self, offset: int) -> None:
        """Begin at byte `offset` of the text instead."""
        self.crc32 = self._stream.skip(offset)
        self.offset = offset

    def __iter__(self) -> Iterator[bytes | None]:
        """Each line.

        Raises:
            DamagedError: the stream ends too early; the line that it ends in is lost.
        """
        held: list[bytes] = []
        size, crc32 = 0, self.crc32
        while piece := self._stream.read():
            *ends, rest = piece.split(b"\n")
            for end in ends:
                held += end, b"\n"
                size += len(end) + 1
                crc32 = zlib.crc32(b"\n", zlib.crc32(end, crc32))
                self.offset, self.crc32 = self.offset + size, crc32
                yield b"".join(held) if size <= self._limit else None
                held, size = [], 0
            size += len(rest)
            crc32 = zlib.crc32(rest, crc32)
            held = [*held, rest] if size <= self._limit else []
        if size:
            self.offset, self.crc32 = self.offset + size, crc32
            yield b"".join(held) if size <= self._limit else None
