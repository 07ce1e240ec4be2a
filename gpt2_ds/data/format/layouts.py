"""How tokens lie in a file: our own shards, and those of other projects, read where they are.

- `llm.c`: our own; llm.c's and modded-nanogpt's are the same. See `gpt2_ds.data.format.shards`.
- `npy`: what `numpy.save` writes of a one-dimensional array: build-nanogpt's shards.
- `megatron`: a `.bin` of nothing but tokens, and a `.idx` beside it with all the rest.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html;
https://github.com/NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py, _IndexWriter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.format.manifest import Layout, ShardEntry
from gpt2_ds.data.format.shards import (
    FORMATS,
    HEADER_BYTES,
    NO_TOKENIZER,
    ShardHeader,
    map_tokens,
    read_header,
)

NPY_MAGIC = b"\x93NUMPY"
NPY_TYPES = ("<u2", "<u4", "<i4")
NPY_VERSIONS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_TYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
# Packed: 34 bytes.
MEGATRON_HEADER = np.dtype(
    [("magic", "V9"), ("version", "<u8"), ("type", "u1"), ("sequences", "<u8"), ("bounds", "<u8")]
)
_RESTORE = "Restore it from where it came from."


def detect_layout(path: Path) -> Layout:
    """The layout of a file of tokens, from how it, or the `.idx` beside it, begins.

    Raises:
        UserError: it cannot be read, or has none of the three layouts.
    """
    start = _first_bytes(path, len(NPY_MAGIC))
    if start == NPY_MAGIC:
        return "npy"
    index = path.with_suffix(".idx")
    # Before the magic of llm.c, which the first token of Megatron-LM may happen to be.
    if index.is_file() and _first_bytes(index, len(MEGATRON_MAGIC)) == MEGATRON_MAGIC:
        return "megatron"
    if int.from_bytes(start[:4], "little") in {magic for magic, _ in FORMATS.values()}:
        return "llm.c"
    raise user_error(
        str(path),
        "not a file of tokens: no header of llm.c or numpy, and no .idx of Megatron-LM beside it",
        "Move it away, or prepare the text it was made of with launch/prepare_data.py.",
    )


def read_layout(path: Path, layout: Layout) -> ShardHeader:
    """What a file of tokens says of itself, checked against its size.

    Raises:
        UserError: it is not of this layout, or not all of it is there.
    """
    if layout == "llm.c":
        return read_header(path)
    if layout == "npy":
        header = _npy_header(path)
        _check_size(path, header, "its header says")
        return header
    return _read_megatron(path).header


def tokens_of(path: Path, entry: ShardEntry) -> npt.NDArray[np.integer[Any]]:
    """All tokens of the shard at `path`: (n_tokens,), memory-mapped.

    Raises:
        UserError: as `read_layout`.
    """
    return map_tokens(path, read_layout(path, entry.layout))


def token_offset(path: Path, layout: Layout) -> int:
    """The bytes before the first token; needs no file but this one.

    Raises:
        UserError: an `npy` file is not an array as `numpy.save` writes it.
    """
    if layout == "npy":
        return _npy_header(path).offset
    return HEADER_BYTES if layout == "llm.c" else 0


def megatron_documents(path: Path) -> npt.NDArray[np.int64]:
    """Where the documents of a Megatron-LM `.bin` begin, as its `.idx` says.

    Args:
        path: of the `.bin`.

    Returns:
        (n_documents,) int64 offsets in tokens.

    Raises:
        UserError: the `.idx` is not there, or does not fit.
    """
    index = _read_megatron(path)
    starts: npt.NDArray[np.int64] = index.begins[index.bounds[:-1]]
    return starts


def _npy_header(path: Path) -> ShardHeader:
    _first_bytes(path, 0)
    with path.open("rb") as file:
        try:
            read = NPY_VERSIONS[npy_format.read_magic(file)]
            shape, by_columns, dtype = read(file)
        except Exception as error:  # it is parsed as Python, which fails in many ways
            what = f"not an array as numpy.save writes it ({type(error).__name__}: {error})"
            raise user_error(str(path), what, _RESTORE) from error
        offset = file.tell()
    if len(shape) != 1 or by_columns or dtype.str not in NPY_TYPES:
        raise user_error(
            str(path),
            f"an array of shape {shape} and type {dtype.str}{', by columns' if by_columns else ''}",
            f"Save it again as one dimension of type {' or '.join(NPY_TYPES)}.",
        )
    return ShardHeader(dtype, shape[0], 0, 0, NO_TOKENIZER, offset)


@dataclass(frozen=True)
class _Megatron:
    """A `.bin` and its `.idx`: document i is the sequences `bounds[i]` to `bounds[i + 1]`."""

    header: ShardHeader
    begins: npt.NDArray[np.int64]  # of each sequence, in tokens; then the number of all tokens
    bounds: npt.NDArray[np.int64]


def _read_megatron(path: Path) -> _Megatron:
    index = path.with_suffix(".idx")
    start = _first_bytes(index, MEGATRON_HEADER.itemsize)
    size = index.stat().st_size
    if size < MEGATRON_HEADER.itemsize:
        raise user_error(
            str(index),
            f"{size} bytes, and the header alone has {MEGATRON_HEADER.itemsize}",
            _RESTORE,
        )
    magic, version, code, n, n_bounds = np.frombuffer(start, MEGATRON_HEADER)[0].tolist()
    if (magic, version) != (MEGATRON_MAGIC, 1) or code not in MEGATRON_TYPES:
        known = ", ".join(f"{number} ({dtype.name})" for number, dtype in MEGATRON_TYPES.items())
        raise user_error(
            str(index),
            f"begins with {magic!r}, version {version}, type {code}; read are "
            f"{MEGATRON_MAGIC!r}, version 1, type {known}",
            "Make it again with such tokens, or restore it.",
        )
    least = MEGATRON_HEADER.itemsize + 12 * n + 8 * n_bounds
    if size not in (least, least + n):  # with modes, a byte more a sequence
        what = f"{size} bytes, and {n} sequences and {n_bounds} bounds are {least}"
        raise user_error(str(index), what, _RESTORE)
    data = np.memmap(index, np.uint8, "r")
    lengths = np.frombuffer(data, "<i4", n, MEGATRON_HEADER.itemsize)
    pointers = np.frombuffer(data, "<i8", n, MEGATRON_HEADER.itemsize + 4 * n)
    bounds = np.frombuffer(data, "<i8", n_bounds, MEGATRON_HEADER.itemsize + 12 * n)
    begins = np.zeros(n + 1, np.int64)
    np.cumsum(lengths, out=begins[1:])
    dtype = MEGATRON_TYPES[code]
    if not (
        (lengths >= 0).all()
        and np.array_equal(pointers, begins[:-1] * dtype.itemsize)
        and n_bounds > 0
        and (bounds[0], bounds[-1]) == (0, n)
        and (np.diff(bounds) >= 0).all()
    ):
        what = "its lengths, pointers and bounds of documents do not fit one another"
        raise user_error(str(index), what, _RESTORE)
    header = ShardHeader(dtype, int(begins[-1]), n_bounds - 1, 0, NO_TOKENIZER, offset=0)
    _check_size(path, header, f"{index.name} says")
    return _Megatron(header, begins, bounds)


def _check_size(path: Path, header: ShardHeader, who_says: str) -> None:
    _first_bytes(path, 0)
    if (size := path.stat().st_size) != header.file_bytes:
        raise user_error(
            str(path),
            f"{size} bytes, and {who_says} {header.n_tokens} tokens, which are "
            f"{header.file_bytes} bytes",
            _RESTORE,
        )


def _first_bytes(path: Path, n: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(n)
    except OSError as error:
        raise user_error(str(path), f"cannot be read ({error.strerror})", _RESTORE) from error
