from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.layouts import detect_layout, megatron_documents, read_layout, token_offset
from gpt2_ds.data.format.manifest import Layout
from gpt2_ds.data.format.shards import NO_TOKENIZER, map_tokens
from tests.data.format.foreign_shards import write_llm_c, write_megatron, write_npy

TOKENS = [256, *b"hello", 256, *b"you", 70, 71]
DOCUMENTS = [[[1, 2, 3], [4, 256]], [], [[5, 256]], [[6], [], [7, 8, 256]]]
FLAT = [1, 2, 3, 4, 256, 5, 256, 6, 7, 8, 256]
INDEX_HEADER = struct.Struct("<9sQBQQ")


def write(path: Path, layout: str, letter: str) -> list[int]:
    if layout == "megatron":
        write_megatron(path, DOCUMENTS, letter)
        return FLAT
    (write_npy if layout == "npy" else write_llm_c)(path, TOKENS, letter)
    return TOKENS


@pytest.mark.parametrize(
    "layout, letter, offset",
    [
        ("llm.c", "H", 1024),
        ("llm.c", "I", 1024),
        ("npy", "H", 128),
        ("npy", "I", 128),
        ("npy", "i", 128),
        ("megatron", "H", 0),
        ("megatron", "i", 0),
    ],
)
def test_each_layout_is_known_and_read(
    tmp_path: Path, layout: Layout, letter: str, offset: int
) -> None:
    path = tmp_path / ("x.npy" if layout == "npy" else "x.bin")
    tokens = write(path, layout, letter)
    assert detect_layout(path) == layout
    header = read_layout(path, layout)
    assert (header.dtype, header.n_tokens) == (np.dtype(letter), len(tokens))
    assert (header.offset, header.tokenizer_sha256) == (offset, NO_TOKENIZER)
    assert header.file_bytes == path.stat().st_size
    assert header.n_documents == (4 if layout == "megatron" else 0)
    assert map_tokens(path, header).tolist() == tokens
    path.with_suffix(".idx").unlink(missing_ok=True)
    assert token_offset(path, layout) == offset


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 300), max_size=5), max_size=4), max_size=5),
    st.booleans(),
)
def test_documents_of_megatron(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], with_modes: bool
) -> None:
    path = tmp_path_factory.mktemp("megatron") / "x.bin"
    write_megatron(path, documents, with_modes=with_modes)
    flat = [[token for sequence in document for token in sequence] for document in documents]
    starts = megatron_documents(path)
    assert read_layout(path, "megatron").n_documents == len(starts) == len(flat)
    tokens = np.fromfile(path, "<i4")
    assert [part.tolist() for part in np.split(tokens, starts)[1:]] == flat


def test_a_first_token_that_is_llm_cs_magic(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x.bin", [[[20240520, 1]]])
    assert detect_layout(tmp_path / "x.bin") == "megatron"


def test_an_index_of_our_own_is_not_megatrons(tmp_path: Path) -> None:
    write_llm_c(tmp_path / "x.bin", TOKENS)
    (tmp_path / "x.idx").write_bytes(struct.pack("<2I", 0, 6))
    assert detect_layout(tmp_path / "x.bin") == "llm.c"


@pytest.mark.parametrize("data", [b"", b"\x00" * 5000, b"hello world"])
def test_a_file_that_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"train.bin: not a file of tokens: no header of llm.c or n"
    ):
        detect_layout(path)


@pytest.mark.parametrize("layout", ["llm.c", "npy", "megatron"])
def test_a_missing_file(tmp_path: Path, layout: Layout) -> None:
    write(tmp_path / "x.bin", layout, "H")
    (tmp_path / "x.bin").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"x.bin: cannot be read \(No such file or directory\)"):
        read_layout(tmp_path / "x.bin", layout)
    with pytest.raises(UserError, match=r"x.bin: cannot be read \(No such file or directory\)"):
        detect_layout(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((2, 3), "<u2"), r"an array of shape \(2, 3\) and type <u2. Save it again as"),
        (np.zeros(3, ">u2"), r"an array of shape \(3,\) and type >u2. Save it again as one dim"),
        (
            np.zeros(3, "<i8"),
            ".*and type <i8. Save it again as one dimension of type <u2 or <u4 or ",
        ),
        (np.zeros(3, "<f4"), ".*and type <f4"),
        (np.zeros(3, "u1"), r".*and type \|u1"),
        (
            np.zeros((2, 3), "<u2", order="F"),
            r"an array of shape \(2, 3\) and type <u2, by columns. Save it",
        ),
        (np.zeros((), "<u2"), r"an array of shape \(\) and type <u2"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=rf"x.npy: {message}"):
        read_layout(tmp_path / "x.npy", "npy")


def test_one_dimension_by_columns(tmp_path: Path) -> None:
    write_npy(tmp_path / "x.npy", TOKENS)
    data = (tmp_path / "x.npy").read_bytes().replace(b"False", b"True ", 1)
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"x.npy: .*shape \(12,\) and type <u2, by columns. Save"):
        read_layout(tmp_path / "x.npy", "npy")


def test_a_name_says_nothing(tmp_path: Path) -> None:
    write_npy(tmp_path / "x.npy", TOKENS)
    (tmp_path / "x.npy").rename(tmp_path / "x.bin")
    assert detect_layout(tmp_path / "x.bin") == "npy"
    write_llm_c(tmp_path / "y.npy", TOKENS)
    assert detect_layout(tmp_path / "y.npy") == "llm.c"


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([_Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"x.npy: an array of shape \(1,\) and type \|O"):
        read_layout(path, "npy")
    path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(UserError, match=r"x.npy: not an array as numpy.save writes it \(ValueErr"):
        read_layout(path, "npy")


def test_a_longer_header_is_read_and_an_unknown_version_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.arange(5, dtype="<u2"), version=(2, 0))
    assert map_tokens(path, read_layout(path, "npy")).tolist() == [0, 1, 2, 3, 4]
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.arange(5, dtype="<u2"), version=(3, 0))
    with pytest.raises(UserError, match=r"x.npy: not an array .* \(KeyError: \(3, 0\)\). Restore"):
        read_layout(path, "npy")


def test_a_part_of_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    write_npy(path, TOKENS)
    path.write_bytes(path.read_bytes()[:-1])
    expected = r"x.npy: 151 bytes, and its header says 12 tokens, which are 152 bytes. Restore it"
    with pytest.raises(UserError, match=expected):
        read_layout(path, "npy")


@settings(max_examples=300)
@given(st.integers(0, 128 * 8 - 1))
def test_a_changed_header_of_an_array_is_refused_or_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, bit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.npy"
    write_npy(path, TOKENS)
    before = read_layout(path, "npy")
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    try:
        after = read_layout(path, "npy")
    except UserError:
        return
    assert after.file_bytes == len(data)
    assert after.n_tokens == before.n_tokens


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write_megatron(tmp_path / "x.bin", DOCUMENTS)
    return tmp_path / "x.idx"


def refused(index: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_layout(index.with_suffix(".bin"), "megatron")


@pytest.mark.parametrize(
    "field, value, message",
    [
        (0, b"TNTIDX\x00\x00\x00", r"x.idx: begins with b'TNTIDX.*', version 1, type 4; read are"),
        (1, 2, "version 2, type 4; read are .* version 1, type 4 .int32., 8 .uint16.. Make it ag"),
        (2, 5, "version 1, type 5; read are"),
        (3, 7, "x.idx: 146 bytes, and 7 sequences and 5 bounds are 158. Restore it"),
        (4, 2**60, "146 bytes, and 6 sequences and 1152921504606846976 bounds are 92233720368547"),
    ],
)
def test_wrong_index_headers(index: Path, field: int, value: Any, message: str) -> None:
    data = index.read_bytes()
    fields = list(INDEX_HEADER.unpack(data[:34]))
    fields[field] = value
    index.write_bytes(INDEX_HEADER.pack(*fields) + data[34:])
    refused(index, message)


@pytest.mark.parametrize(
    "offset, code, value",
    [
        (34, "i", -3),  # a length
        (38, "i", 99),
        (34 + 24 + 8, "q", 16),  # a pointer
        (34 + 72, "q", 1),  # the first bound, the second, the last
        (34 + 80, "q", 7),
        (34 + 104, "q", 5),
    ],
)
def test_an_index_that_does_not_fit_itself(index: Path, offset: int, code: str, value: int) -> None:
    data = bytearray(index.read_bytes())
    struct.pack_into(f"<{code}", data, offset, value)
    index.write_bytes(data)
    refused(index, r"x.idx: its lengths, pointers and bounds of documents do not fit one another")


def test_an_index_without_bounds(index: Path) -> None:
    index.write_bytes(INDEX_HEADER.pack(b"MMIDIDX\x00\x00", 1, 4, 0, 0))
    refused(index, "x.idx: its lengths, pointers and bounds of documents do not fit one another")


def test_an_index_with_a_negative_length_that_adds_up(index: Path) -> None:
    data = INDEX_HEADER.pack(b"MMIDIDX\x00\x00", 1, 4, 2, 2)
    index.write_bytes(data + struct.pack("<2i4q", 13, -2, 0, 52, 0, 2))
    refused(index, "x.idx: its lengths, pointers and bounds of documents do not fit one another")


def test_an_index_with_too_much(index: Path) -> None:
    index.write_bytes(index.read_bytes() + bytes(5))
    refused(index, "x.idx: 151 bytes, and 6 sequences and 5 bounds are 146. Restore it")


def test_an_index_that_is_cut_or_missing_or_of_another_file(index: Path) -> None:
    data = index.read_bytes()
    index.write_bytes(data[:33])
    refused(index, "x.idx: 33 bytes, and the header alone has 34. Restore it")
    index.write_bytes(data)
    index.with_suffix(".bin").write_bytes(bytes(43))
    refused(index, "x.bin: 43 bytes, and x.idx says 11 tokens, which are 44 bytes. Restore it")
    index.unlink()
    refused(index, r"x.idx: cannot be read \(No such file or directory\)")
