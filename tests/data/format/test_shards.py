from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format import shards
from gpt2_ds.data.format.manifest import Layout, ShardEntry
from gpt2_ds.data.format.shards import (
    map_tokens,
    read_header,
    read_index,
    verify_shard,
    write_shard,
)
from gpt2_ds.files import checksum

SHA256 = "0123456789abcdef" * 4


def write(path: Path, dtype: str = "uint16", n: int = 1000) -> ShardEntry:
    tokens = np.arange(n, dtype=dtype)
    return write_shard(
        path.parent,
        path.name,
        "train",
        tokens,
        np.array([0, 10]),
        eot_token=256,
        tokenizer_sha256=SHA256,
    )


@pytest.mark.parametrize(
    "dtype, magic, version", [("uint16", 20240520, 1), ("uint32", 20240801, 7)]
)
def test_llm_c_reads_it(tmp_path: Path, dtype: str, magic: int, version: int) -> None:
    """The checks of llm.c's dataloader.h and modded-nanogpt's _load_data_shard, written anew."""
    path = tmp_path / "shard.bin"
    write(path, dtype)
    with path.open("rb") as file:
        header = np.frombuffer(file.read(256 * 4), dtype=np.int32)
        assert header[0] == magic
        assert header[1] == version
        tokens = np.frombuffer(file.read(), dtype=dtype)
    assert len(tokens) == header[2] == 1000
    assert tokens.tolist() == list(range(1000))
    assert header[3:5].tolist() == [2, 256]
    assert header[8:16].tobytes().hex() == SHA256
    assert not header[5:8].any()
    assert not header[16:].any()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    write(path)
    header = read_header(path)
    assert (header.n_tokens, header.n_documents, header.eot_token) == (1000, 2, 256)
    assert header.tokenizer_sha256 == SHA256
    assert header.file_bytes == path.stat().st_size == 3024
    tokens = map_tokens(path, header)
    assert tokens.tolist() == list(range(1000))
    assert not tokens.flags.writeable
    assert read_index(path, header).tolist() == [0, 10]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shard.bin", "shard.idx"]


def test_a_published_shard_without_our_words_is_read(tmp_path: Path) -> None:
    words = np.zeros(256, dtype="<i4")
    words[:3] = 20240520, 1, 5
    path = tmp_path / "fineweb_train_000001.bin"
    path.write_bytes(words.tobytes() + np.arange(5, dtype="<u2").tobytes())
    header = read_header(path)
    assert map_tokens(path, header).tolist() == [0, 1, 2, 3, 4]
    assert header.tokenizer_sha256 == shards.NO_TOKENIZER


@pytest.mark.parametrize(
    "word, value, message",
    [
        (0, 7, "not a token shard: it begins with 7, not with one of .20240520, 20240801"),
        (1, 2, "version 2 of the shard format 20240520; version 1 is read"),
        (2, 999, "3024 bytes, and a header that says 999 tokens, which are 3022 bytes"),
        (2, -1, "3024 bytes, and a header that says -1 tokens"),
    ],
)
def test_wrong_headers(tmp_path: Path, word: int, value: int, message: str) -> None:
    path = tmp_path / "shard.bin"
    write(path)
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    data[: 4 * 256].view("<i4")[word] = value
    path.write_bytes(data.tobytes())
    with pytest.raises(UserError, match=rf"shard.bin: {message}"):
        read_header(path)


def test_truncated_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    entry = write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"shard.bin: 3023 bytes, and a header that says 1000"):
        read_header(path)
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"shard.bin: 100 bytes, and the header alone has 1024"):
        read_header(path)
    path.unlink()
    with pytest.raises(UserError, match=r"shard.bin: cannot be read \(No such file"):
        read_header(path)
    with pytest.raises(UserError, match=r"shard.bin: cannot be read \(No such file"):
        verify_shard(path, entry)


def test_a_wrong_index(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    write(path)
    header = read_header(path)
    (tmp_path / "shard.idx").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"shard.idx: 4 bytes, and 2 documents are 8 bytes"):
        read_index(path, header)
    (tmp_path / "shard.idx").unlink()
    with pytest.raises(UserError, match=r"shard.idx: cannot be read \(No such file"):
        read_index(path, header)


def test_more_tokens_than_a_header_counts(tmp_path: Path) -> None:
    tokens = np.broadcast_to(np.uint16(1), (2**31,))  # no memory behind it
    with pytest.raises(UserError, match=r"2147483648 tokens, and a shard holds at most 2147483647"):
        write_shard(
            tmp_path,
            "x.bin",
            "train",
            tokens,
            np.array([0]),
            eot_token=0,
            tokenizer_sha256=SHA256,
        )
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "shard.bin")
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]


def test_damage_is_found_to_the_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    entry = write(path, "uint32", n=600_000)  # 2,401,024 bytes
    assert entry.bytes == path.stat().st_size
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    data = path.read_bytes()
    assert entry.block_crc32 == tuple(zlib.crc32(data[i : i + 2**20]) for i in (0, 2**20, 2**21))
    verify_shard(path, entry)
    for offset, said in (
        (2**20 - 1, "0 and 1048576, tokens 0 to 261887"),
        (2**20, "1048576 and 2097152, tokens 261888 to 524031"),
    ):
        flipped = bytearray(data)
        flipped[offset] ^= 16
        path.write_bytes(flipped)
        expected = (
            rf"shard.bin: sha256 \w+, expected {entry.sha256}: damaged between bytes {said}\."
        )
        with pytest.raises(UserError, match=expected):
            verify_shard(path, entry)
    path.write_bytes(data[:-1] + b"x")
    expected = r"damaged between bytes 2097152 and 2401024, tokens 524032 to 599999\. Restore"
    with pytest.raises(UserError, match=expected):
        verify_shard(path, entry)
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"damaged, 2401023 bytes instead of 2401024\. Restore"):
        verify_shard(path, entry)


@pytest.mark.parametrize("layout, n, offset", [("npy", 600_000, 128), ("megatron", 5, 0)])
def test_damage_in_tokens_of_other_layouts(
    tmp_path: Path, layout: Layout, n: int, offset: int
) -> None:
    path = tmp_path / "x.bin"
    data = bytes(offset) + np.arange(n, dtype="<u2").tobytes()
    checksum = checksum_of_bytes(data)
    entry = ShardEntry(
        split="train",
        file="x.bin",
        layout=layout,
        tokens=n,
        documents=0,
        bytes=len(data),
        sha256=checksum.sha256,
        block_crc32=checksum.block_crc32,
        index_sha256=None,
    )
    path.write_bytes(data[:-1] + b"\xff")
    begin, first = (2**20, (2**20 - offset) // 2) if n > 5 else (0, 0)
    expected = rf"between bytes {begin} and {len(data)}, tokens {first} to {n - 1}\. Restore"
    with pytest.raises(UserError, match=expected):
        verify_shard(path, entry)


def checksum_of_bytes(data: bytes) -> checksum.Checksum:
    made = checksum.Checksum()
    made.update(data)
    return made


@pytest.mark.parametrize("n_vocab, refused", [(None, False), (1000, False), (999, True)])
def test_a_token_beyond_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_vocab: int | None, refused: bool
) -> None:
    monkeypatch.setattr(shards, "PIECE_TOKENS", 64)
    path = tmp_path / "shard.bin"
    entry = write(path)
    if not refused:
        verify_shard(path, entry, n_vocab=n_vocab)
        return
    with pytest.raises(
        UserError,
        match=r"shard.bin: token 999 at offset 999, and the vocabulary has 999 tokens. Use the tok",
    ):
        verify_shard(path, entry, n_vocab=n_vocab)


@given(st.lists(st.integers(-2, 12)), st.integers(1, 5))
def test_the_first_token_beyond(tokens: list[int], piece: int) -> None:
    expected = [offset for offset, token in enumerate(tokens) if not 0 <= token < 10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "PIECE_TOKENS", piece)
        found = shards.first_beyond(np.array(tokens, dtype="<i4"), 10)
    assert found == (expected[0] if expected else None)


def test_a_damaged_shard_and_its_damaged_index_are_both_named(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    entry = write(path)
    for file in (path, tmp_path / "shard.idx"):
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError) as found:
        verify_shard(path, entry, n_vocab=10)
    assert [Path(fault.where).name for fault in found.value.faults] == ["shard.bin", "shard.idx"]


def test_a_damaged_index(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    entry = write(path)
    (tmp_path / "shard.idx").write_bytes(b"12345678")
    with pytest.raises(
        UserError, match=rf"shard.idx: sha256 \w+, expected {entry.index_sha256}: d"
    ):
        verify_shard(path, entry)
    (tmp_path / "shard.idx").unlink()
    with pytest.raises(UserError, match=r"shard.idx: cannot be read \(No such file"):
        verify_shard(path, entry)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 9))
def test_a_checksum_is_the_same_however_the_bytes_come(parts: list[bytes], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksum, "BLOCK_BYTES", block)
        made = checksum.Checksum()
        for part in parts:
            made.update(part)
    whole = b"".join(parts)
    assert made.n_bytes == len(whole)
    assert made.sha256 == hashlib.sha256(whole).hexdigest()
    blocks = [whole[i : i + block] for i in range(0, len(whole), block)]
    assert made.block_crc32 == tuple(map(zlib.crc32, blocks))
