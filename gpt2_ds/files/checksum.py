"""The checksums of a file, computed while its bytes are read or written."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat

BLOCK_BYTES = 2**20


class Checksum:
    """The sha256 of all bytes, and the CRC-32 of each block of a MiB."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._sha256 = hashlib.sha256()
        self._blocks: list[int] = []

    def update(self, data: bytes | memoryview) -> None:
        """Add these bytes."""
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        while view:
            begun = self.n_bytes % BLOCK_BYTES
            part = view[: BLOCK_BYTES - begun]
            before = self._blocks.pop() if begun else 0
            self._blocks.append(zlib.crc32(part, before))
            self.n_bytes += len(part)
            view = view[len(part) :]

    @property
    def sha256(self) -> str:
        """In hexadecimal."""
        return self._sha256.hexdigest()

    @property
    def block_crc32(self) -> tuple[int, ...]:
        """Of each MiB; the last may be shorter."""
        return tuple(self._blocks)


def checksum_of(path: Path) -> Checksum:
    """The checksums of a file.

    Raises:
        OSError: it cannot be read.
    """
    checksum = Checksum()
    with path.open("rb") as file:
        while data := file.read(4 * BLOCK_BYTES):
            checksum.update(data)
    return checksum


def sha256_of(path: Path, heartbeat: Heartbeat = UNHEARD) -> str:
    """The sha256 of a file, in hexadecimal.

    Args:
        path: of the file.
        heartbeat: of the reading; beats with each MiB.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while n_bytes := file.readinto(buffer):
            digest.update(buffer[:n_bytes])
            heartbeat.beat()
    return digest.hexdigest()
