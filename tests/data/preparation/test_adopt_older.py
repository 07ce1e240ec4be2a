"""Shards of this project itself: of its format 1, which had fewer hashes, or without a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.manifest import Manifest
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.preparation import adopt as adopt_module
from gpt2_ds.data.preparation.adopt import adopt
from tests.data.format.foreign_shards import write_llm_c
from tests.data.preparation.prepared_text import prepare_texts

BYTES = load_tokenizer("bytes")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.glob("*/shard-*")}


@pytest.fixture
def older(tmp_path: Path) -> tuple[Path, Manifest]:
    """A dataset as the version before made it, and what its manifest would be today."""
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} is a number\n" * 9)
    path = tmp_path / "d"
    made = prepare_texts([tmp_path / "text"], path, validation_fraction=0.3, shard_tokens=500)
    content = json.loads((path / "manifest.json").read_text()) | {"format": 1}
    del content["sha256"]
    for key in ("document_separator", "shuffle_seed", "duplicates"):
        content["source"].pop(key, None)
    for shard in content["shards"]:
        del shard["layout"], shard["block_crc32"], shard["index_sha256"]
        del shard["index_bytes"]
    (path / "manifest.json").write_text(json.dumps(content))
    saved = json.loads((path / "tokenizer" / "tokenizer.json").read_text())
    del saved["file_sha256"]
    text = json.dumps(saved, indent=1, ensure_ascii=False) + "\n"
    (path / "tokenizer" / "tokenizer.json").write_text(text)
    return path, made


def test_a_dataset_of_an_older_version(
    older: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt_module, "PIECE_TOKENS", 100)
    path, made = older
    with pytest.raises(UserError, match=r"manifest.json: format: 1, and this version"):
        Dataset.open(path)
    before = contents(path)
    manifest = adopt(path, BYTES)
    assert contents(path) == before
    assert len({shard.split for shard in manifest.shards}) == 2
    assert len(manifest.shards) > 4
    assert manifest.fingerprint == made.fingerprint
    assert manifest.shards == made.shards  # with the hash of each index
    Dataset.open(path).verify()
    assert "file_sha256" in (path / "tokenizer" / "tokenizer.json").read_text()


def test_an_older_dataset_that_was_changed(older: tuple[Path, Manifest]) -> None:
    path, made = older
    damaged, gone = (path / shard.file for shard in made.shards[:2])
    data = bytearray(damaged.read_bytes())
    data[-2] ^= 1
    damaged.write_bytes(data)
    gone.unlink()
    write_llm_c(path / "train" / "zz.bin", [1, 2])
    with pytest.raises(UserError) as refused:
        adopt(path, BYTES)
    where = [Path(fault.where).name for fault in refused.value.faults]
    assert where == [damaged.name, gone.name, "zz.bin"]
    assert str(refused.value.faults[1]) == (
        f"{gone}: sha256 None, and the older manifest.json says {made.shards[1].sha256}. Restore "
        "the file; or delete manifest.json, and adopt what is there now."
    )
    assert json.loads((path / "manifest.json").read_text())["format"] == 1


def test_an_index_of_our_own(older: tuple[Path, Manifest]) -> None:
    path, made = older
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


def test_another_tokenizer(older: tuple[Path, Manifest], tmp_path: Path) -> None:
    path, _ = older
    (path / "manifest.json").unlink()
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
