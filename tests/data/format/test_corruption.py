"""Whatever bit of a dataset is flipped, training does not start on it, and the file is named."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.inspection.inspection import verify
from gpt2_ds.data.preparation.adopt import adopt
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from tests.data.format.foreign_shards import write_llm_c, write_megatron, write_npy
from tests.data.small_dataset import make_dataset

EVERYTHING = (0, None)
HEADER, BODY = (0, 1024), (1024, None)
PARTS = [
    ("*/shard-*.bin", BODY),
    ("*/shard-*.bin", HEADER),
    ("*/shard-*.idx", EVERYTHING),
    ("manifest.json", EVERYTHING),
    ("tokenizer/ranks.tiktoken", EVERYTHING),
    ("tokenizer/tokenizer.json", EVERYTHING),
]


def opened_and_verified(path: Path) -> None:
    Dataset.open(path).verify()


def flips(path: Path, n: int, parts: list[tuple[str, tuple[int, int | None]]]) -> Iterator[Path]:
    """Flip one bit of one file, give the file, mend it; n times, in turn of every kind."""
    rng = random.Random(0)
    for number in range(n):
        pattern, (begin, end) = parts[number % len(parts)]
        file = rng.choice(sorted(path.glob(pattern)))
        data = file.read_bytes()
        bit = rng.randrange(8 * begin, 8 * (len(data) if end is None else end))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        yield file
        file.write_bytes(data)


def test_a_hundred_flipped_bits_are_all_found(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(30):
        (text / f"{number}.txt").write_text(f"number {number}: naïve\t🙂\x01\n" * 20)
    path = tmp_path / "d"
    prepare(
        Request(
            inputs=[text], out=path, tokenizer="bytes", validation_fraction=0.3, shard_tokens=4000
        )
    )
    assert len(list(path.glob("*/shard-*.bin"))) > 3
    opened_and_verified(path)
    verify(path)
    for file in flips(path, 100, PARTS):
        for check in (opened_and_verified, verify):
            with pytest.raises(UserError) as found:
                check(path)
            assert str(file) in str(found.value)
    opened_and_verified(path)


@pytest.mark.parametrize("layout", ["llm.c", "npy", "megatron"])
def test_flipped_bits_of_adopted_shards_are_found(tmp_path: Path, layout: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 700).tolist()
    parts = [("*.bin", EVERYTHING)]
    if layout == "megatron":
        write_megatron(tmp_path / "x.bin", [[tokens[:100]], [tokens[100:]]])
        parts.append(("*.idx", EVERYTHING))
    elif layout == "npy":
        write_npy(tmp_path / "x.npy", tokens)
        parts = [("*.npy", (0, 128)), ("*.npy", (128, None))]
    else:
        write_llm_c(tmp_path / "x.bin", tokens)
        parts = [("*.bin", HEADER), ("*.bin", BODY)]
    adopt(tmp_path, load_tokenizer("bytes"))
    opened_and_verified(tmp_path)
    for file in flips(tmp_path, 30, parts):
        with pytest.raises(UserError, match=file.name):
            opened_and_verified(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "d", [np.arange(256)] * 2).path


def refused_at_start(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset.open(path)


def test_a_shard_that_is_cut(path: Path) -> None:
    shard = path / "train" / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-3])
    refused_at_start(path, r"00001.bin: 1533 bytes, and a header that says 256 tokens, which are 1")


def test_a_shard_with_another_magic(path: Path) -> None:
    shard = path / "train" / "shard-00001.bin"
    shard.write_bytes(b"\x00\x00\x00\x00" + shard.read_bytes()[4:])
    refused_at_start(path, r"00001.bin: not a token shard: it begins with 0, not with one of")


def test_a_shard_of_another_type(path: Path) -> None:
    write_llm_c(path / "train" / "shard-00001.bin", range(256), "I")
    expected = (
        r"00001.bin: \(type, tokens, documents, bytes\) are \('uint32', 256, 0, 2048\), and m"
    )
    refused_at_start(path, expected)


def test_a_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    tokens = np.arange(256)
    tokens[77] = 300
    dataset = make_dataset(tmp_path, [np.arange(256), tokens])
    dataset.verify(0, 2)
    expected = r"00001.bin: token 300 at offset 77, and the vocabulary has 257 tokens. Use the toke"
    with pytest.raises(UserError, match=expected):
        dataset.verify(1, 2)


def test_an_index_that_is_gone(path: Path) -> None:
    (path / "train" / "shard-00001.idx").unlink()
    with pytest.raises(UserError, match=r"00001.idx: cannot be read \(No such file or directory\)"):
        opened_and_verified(path)
