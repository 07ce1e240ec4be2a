from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format import shards
from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.format.shards import map_tokens, read_header, read_index, write_shard
from gpt2_ds.data.format.verify import verify_shard

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
