"""Shards of this project itself, without their manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.manifest import Manifest
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.preparation import adopt as adopt_module
from gpt2_ds.data.preparation.adopt import adopt
from tests.data.preparation.prepared_text import prepare_texts

BYTES = load_tokenizer("bytes")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.glob("*/shard-*")}


@pytest.fixture
def ours(tmp_path: Path) -> tuple[Path, Manifest]:
    """A dataset without its manifest, and the manifest."""
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} is a number\n" * 9)
    path = tmp_path / "d"
    made = prepare_texts([tmp_path / "text"], path, validation_fraction=0.3, shard_tokens=500)
    (path / "manifest.json").unlink()
    return path, made


def test_shards_whose_manifest_is_lost(
    ours: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt_module, "PIECE_TOKENS", 100)
    path, made = ours
    before = contents(path)
    manifest = adopt(path, BYTES)
    assert contents(path) == before
    assert len({shard.split for shard in manifest.shards}) == 2
    assert len(manifest.shards) > 4
    assert manifest.fingerprint == made.fingerprint
    assert manifest.shards == made.shards  # with the hash of each index
    Dataset.open(path).verify()


def test_a_format_that_is_not_known(ours: tuple[Path, Manifest]) -> None:
    path, _ = ours
    (path / "manifest.json").write_text('{"format": 1}')
    for read in (Dataset.open, lambda path: adopt(path, BYTES)):
        with pytest.raises(UserError) as refused:
            read(path)
        assert str(refused.value) == (
            f"{path}/manifest.json: format: 1, and this version of the code reads 2. "
            "Use the version that made it, or prepare the dataset again."
        )


def test_an_index_of_our_own(ours: tuple[Path, Manifest]) -> None:
    path, made = ours
    index = (path / made.shards[0].file).with_suffix(".idx")
    data = index.read_bytes()
    index.write_bytes(data[:-4] + b"\x01\x02\x00\x00")
    with pytest.raises(UserError, match=r"00000.idx: not where the documents of shard-00000.bin b"):
        adopt(path, BYTES)
    index.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"00000.idx: \d+ bytes, and \d+ documents are \d+ bytes"):
        adopt(path, BYTES)
    index.unlink()
    assert adopt(path, BYTES).shards[0].index_sha256 is None


def test_another_tokenizer(ours: tuple[Path, Manifest], tmp_path: Path) -> None:
    path, _ = ours
    ranks = (path / "tokenizer" / "ranks.tiktoken").read_bytes()
    (tmp_path / "mine.tiktoken").write_bytes(ranks)  # with another pattern
    mine = load_tokenizer(str(tmp_path / "mine.tiktoken"))
    said = rf"made with tokenizer {BYTES.sha256}, and mine.tiktoken is {mine.sha256}. Name the tok"
    with pytest.raises(UserError, match=rf"train/shard-00000.bin: {said}"):
        adopt(path, mine)
    for shard in path.glob("*/*.bin"):
        data = bytearray(shard.read_bytes())
        data[32:64] = bytes(32)
        shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"d/tokenizer: {said}"):
        adopt(path, mine)
