from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format import verify
from gpt2_ds.data.format.manifest import Layout, ShardEntry
from gpt2_ds.data.format.verify import verify_shard
from gpt2_ds.files import checksum
from tests.data.format.test_shards import write


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
    monkeypatch.setattr(verify, "PIECE_TOKENS", 64)
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
        patch.setattr(verify, "PIECE_TOKENS", piece)
        found = verify.first_beyond(np.array(tokens, dtype="<i4"), 10)
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
