"""Whether a shard is what the manifest says, and where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.data.format.layouts import tokens_of
from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.format.shards import REMAKE
from gpt2_ds.files.checksum import BLOCK_BYTES, Checksum, checksum_of, sha256_of

PIECE_TOKENS = 2**22  # looked at in one go


def verify_shard(path: Path, entry: ShardEntry, *, n_vocab: int | None = None) -> None:
    """Read a shard and its index, and compare them with their entry in the manifest.

    Args:
        path: of the shard.
        entry: its own.
        n_vocab: if given, every token must be below it.

    Raises:
        UserError: a byte of the two differs, or a token is not in the vocabulary; names the
            first MiB or token.
    """
    faults = list(_differences(path, entry))
    if not faults and n_vocab is not None:
        tokens = tokens_of(path, entry)
        if (offset := first_beyond(tokens, n_vocab)) is not None:
            faults.append(beyond_fault(path, tokens, offset, n_vocab))
    if faults:
        raise UserError(*faults)


def _differences(path: Path, entry: ShardEntry) -> Iterator[Fault]:
    try:
        checksum = checksum_of(path)
    except OSError as error:
        yield Fault(str(path), f"cannot be read ({error.strerror})", REMAKE)
    else:
        if checksum.sha256 != entry.sha256:
            where = where_damaged(checksum, entry)
            what = f"sha256 {checksum.sha256}, expected {entry.sha256}: damaged{where}"
            yield Fault(str(path), what, REMAKE)
    if entry.index_sha256 is None:
        return
    index = path.with_suffix(".idx")
    try:
        got = sha256_of(index)
    except OSError as error:
        yield Fault(str(index), f"cannot be read ({error.strerror})", REMAKE)
    else:
        if got != entry.index_sha256:
            what = f"sha256 {got}, expected {entry.index_sha256}: damaged"
            yield Fault(str(index), what, REMAKE)


def where_damaged(got: Checksum, entry: ShardEntry) -> str:
    """In words: the first MiB whose CRC-32 differs, or what is missing or too much."""
    if got.n_bytes != entry.bytes:
        return f", {got.n_bytes} bytes instead of {entry.bytes}"
    for block, (mine, said) in enumerate(zip(got.block_crc32, entry.block_crc32, strict=False)):
        if mine != said:
            begin, end = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, entry.bytes)
            # Wrong only for a file of one block: there, all tokens are named either way.
            item_bytes = 4 if entry.bytes >= 4 * entry.tokens else 2
            offset = entry.bytes - entry.tokens * item_bytes
            first = max(0, begin - offset) // item_bytes
            last = max(0, end - offset - 1) // item_bytes
            return f" between bytes {begin} and {end}, tokens {first} to {last}"
    return ""


def first_beyond(tokens: npt.NDArray[np.integer[Any]], n_vocab: int) -> int | None:
    """The offset of the first token that is not in 0..n_vocab-1; None: all are.

    Args:
        tokens: (n,) of any size; read a piece at a time.
        n_vocab: of the tokenizer.
    """
    for begin in range(0, len(tokens), PIECE_TOKENS):
        piece = tokens[begin : begin + PIECE_TOKENS]
        if int(piece.max()) >= n_vocab or int(piece.min()) < 0:
            return begin + int(np.argmax((piece < 0) | (piece >= n_vocab)))
    return None


def beyond_fault(
    path: Path, tokens: npt.NDArray[np.integer[Any]], offset: int, n_vocab: int
) -> Fault:
    """What to say of what `first_beyond` found at `offset` in the shard at `path`."""
    return Fault(
        str(path),
        f"token {tokens[offset]} at offset {offset}, and the vocabulary has {n_vocab} tokens",
        "Use the tokenizer the tokens were made with.",
    )
