"""A shard: a 1,024-byte header, then tokens. The format llm.c and modded-nanogpt read.

Header: 256 little-endian int32: [0] magic, [1] version, [2] token count, which those projects
check; [3] documents, [4] end-of-text id, [8..15] sha256 of the tokenizer, which are ours (zeros
elsewhere). 20240520, 1 is uint16; 20240801, 7 is uint32.

Source: https://github.com/karpathy/llm.c, dev/data/data_common.py, write_datafile.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.format.manifest import ShardEntry, SplitName
from gpt2_ds.files.checksum import Checksum
from gpt2_ds.files.durable_file import write_durably

HEADER_BYTES = 1024
MAX_SHARD_TOKENS = 2**31 - 1  # the header counts in int32
# Item size -> (magic, version).
FORMATS = {2: (20240520, 1), 4: (20240801, 7)}
NO_TOKENIZER = "0" * 64
REMAKE = "Restore the file from where it came from, or prepare the dataset again."


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself.

    Args:
        dtype: of the tokens, little-endian uint16 or uint32.
        n_tokens: end-of-text tokens included.
        n_documents: 0 in a shard made by other projects.
        eot_token: the end-of-text id; 0 in a shard made by other projects.
        tokenizer_sha256: 64 hexadecimal digits; zeros in a shard made by other projects.
        offset: bytes before the first token.
    """

    dtype: np.dtype[Any]
    n_tokens: int
    n_documents: int
    eot_token: int
    tokenizer_sha256: str
    offset: int = HEADER_BYTES

    @property
    def file_bytes(self) -> int:
        """The size of the whole file."""
        return self.offset + self.n_tokens * self.dtype.itemsize

    def to_bytes(self) -> bytes:
        """The 1,024 bytes."""
        words = np.zeros(256, dtype="<i4")
        words[:2] = FORMATS[self.dtype.itemsize]
        words[2:5] = self.n_tokens, self.n_documents, self.eot_token
        words[8:16] = np.frombuffer(bytes.fromhex(self.tokenizer_sha256), dtype="<i4")
        return words.tobytes()


def write_shard(
    directory: Path,
    file: str,
    split: SplitName,
    tokens: npt.NDArray[Any],
    document_starts: npt.NDArray[Any],
    *,
    eot_token: int,
    tokenizer_sha256: str,
) -> ShardEntry:
    """Write a shard and, beside it, its index of documents (`.idx`).

    Args:
        directory: of the dataset.
        file: inside it, ends in `.bin`; complete under this name or not there.
        split: which it belongs to.
        tokens: (n_tokens,) uint16 or uint32.
        document_starts: (n_documents,) the offset in `tokens` of each document's end-of-text.
        eot_token: goes before each document.
        tokenizer_sha256: `Tokenizer.sha256`.

    Returns:
        Its entry in the manifest.

    Raises:
        UserError: more tokens than the header can count.
    """
    path = directory / file
    if len(tokens) > MAX_SHARD_TOKENS:
        raise user_error(
            str(path),
            f"{len(tokens)} tokens, and a shard holds at most {MAX_SHARD_TOKENS}",
            "Use a smaller shard_tokens, and cut longer documents.",
        )
    header = ShardHeader(
        tokens.dtype.newbyteorder("<"),
        len(tokens),
        len(document_starts),
        eot_token,
        tokenizer_sha256,
    )
    path.parent.mkdir(exist_ok=True)
    index = document_starts.astype("<u4").tobytes()
    write_durably(path.with_suffix(".idx"), [index])
    body = np.ascontiguousarray(tokens, dtype=header.dtype)
    parts: list[bytes | memoryview] = [header.to_bytes(), body.data.cast("B")]
    checksum = Checksum()
    for part in parts:
        checksum.update(part)
    write_durably(path, parts)
    return ShardEntry(
        split=split,
        file=file,
        tokens=header.n_tokens,
        documents=header.n_documents,
        bytes=header.file_bytes,
        sha256=checksum.sha256,
        block_crc32=checksum.block_crc32,
        index_sha256=hashlib.sha256(index).hexdigest(),
        index_bytes=len(index),
    )


def read_header(path: Path) -> ShardHeader:
    """The header of a shard, checked against the size of the file.

    Raises:
        UserError: not a shard, or not all of one.
    """
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise user_error(str(path), f"cannot be read ({error.strerror})", REMAKE) from error
    if len(data) < HEADER_BYTES:
        raise user_error(
            str(path), f"{size} bytes, and the header alone has {HEADER_BYTES}", REMAKE
        )
    words = np.frombuffer(data, dtype="<i4")
    magic, version, n_tokens = (int(word) for word in words[:3])
    items = {known[0]: (item, known[1]) for item, known in FORMATS.items()}
    if magic not in items:
        raise user_error(
            str(path),
            f"not a token shard: it begins with {magic}, not with one of {sorted(items)}",
            "Make shards with launch/prepare_data.py.",
        )
    item_bytes, known_version = items[magic]
    if version != known_version:
        raise user_error(
            str(path),
            f"version {version} of the shard format {magic}; version {known_version} is read",
            "Make the shards with a launch/prepare_data.py of this version.",
        )
    header = ShardHeader(
        np.dtype(f"<u{item_bytes}"),
        n_tokens,
        int(words[3]),
        int(words[4]),
        words[8:16].tobytes().hex(),
    )
    if n_tokens < 0 or size != header.file_bytes:
        raise user_error(
            str(path),
            f"{size} bytes, and a header that says {n_tokens} tokens, which are "
            f"{header.file_bytes} bytes",
            REMAKE,
        )
    return header


def map_tokens(path: Path, header: ShardHeader) -> npt.NDArray[np.integer[Any]]:
    """The tokens, memory-mapped and read-only: (n_tokens,) of `header.dtype`."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, header.dtype, header.n_tokens, header.offset)


def read_index(path: Path, header: ShardHeader) -> npt.NDArray[np.uint32]:
    """The offset of each document's end-of-text token in the shard at `path`: (n_documents,).

    Raises:
        UserError: the `.idx` beside the shard is missing or does not fit its header.
    """
    index = path.with_suffix(".idx")
    try:
        data = index.read_bytes()
    except OSError as error:
        raise user_error(str(index), f"cannot be read ({error.strerror})", REMAKE) from error
    if len(data) != 4 * header.n_documents:
        raise user_error(
            str(index),
            f"{len(data)} bytes, and {header.n_documents} documents are "
            f"{4 * header.n_documents} bytes",
            REMAKE,
        )
    return np.frombuffer(data, dtype="<u4")
