from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.format import verify
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.preparation import adopt as adopt_module
from gpt2_ds.data.preparation.adopt import adopt
from tests.data.format.foreign_shards import write_llm_c, write_megatron, write_npy

BYTES = load_tokenizer("bytes")
EOT = 256
RNG = np.random.default_rng(0)
TRAIN = [[EOT, *RNG.integers(0, 256, 300).tolist(), EOT, *b"more"], [*b"rest", EOT, *b"end"]]
VALIDATION = [EOT, *b"one", EOT, *b"two"]


def bin_llm_c(folder: Path) -> None:
    write_llm_c(folder / "fineweb_val_000000.bin", VALIDATION)
    for number, tokens in enumerate(TRAIN, start=1):
        write_llm_c(folder / f"fineweb_train_{number:06d}.bin", tokens)


def bin_llm_c_wide(folder: Path) -> None:
    write_llm_c(folder / "val" / "0.bin", VALIDATION, "I")
    for number, tokens in enumerate(TRAIN):
        write_llm_c(folder / "train" / f"{number}.bin", tokens, "I")


def npy(folder: Path) -> None:
    write_npy(folder / "edufineweb_val_000000.npy", VALIDATION)
    for number, tokens in enumerate(TRAIN, start=1):
        write_npy(folder / f"edufineweb_train_{number:06d}.npy", tokens)


def megatron(folder: Path, letter: str = "i") -> None:
    """Documents that end with end-of-text, as `--append-eod` makes them."""
    write_megatron(folder / "my-valid_text_document.bin", [[VALIDATION]], letter)
    for number, tokens in enumerate(TRAIN):
        write_megatron(folder / f"{number}_text_document.bin", [[tokens[:2]], [tokens[2:]]], letter)


def megatron_narrow(folder: Path) -> None:
    megatron(folder, "H")


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but those that make it a dataset."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.*")
        if path.is_file() and "tokenizer" not in path.parts and path.name != "manifest.json"
    }


@pytest.mark.parametrize(
    "write, layout, dtype, documents",
    [
        (bin_llm_c, "llm.c", "uint16", [2, 1, 2]),
        (bin_llm_c_wide, "llm.c", "uint32", [2, 1, 2]),
        (npy, "npy", "uint16", [2, 1, 2]),
        (megatron, "megatron", "int32", [2, 2, 1]),
        (megatron_narrow, "megatron", "uint16", [2, 2, 1]),
    ],
)
def test_each_layout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    layout: str,
    dtype: str,
    documents: list[int],
) -> None:
    monkeypatch.setattr(adopt_module, "PIECE_TOKENS", 100)
    write(tmp_path)
    before = contents(tmp_path)
    manifest = adopt(tmp_path, BYTES)
    assert contents(tmp_path) == before
    assert (manifest.dtype, manifest.source) == (dtype, None)
    assert [shard.split for shard in manifest.shards] == ["train", "train", "validation"]
    assert [shard.documents for shard in manifest.shards] == documents
    for shard, tokens in zip(manifest.shards, [*TRAIN, VALIDATION], strict=True):
        data = before[shard.file]
        assert (shard.layout, shard.tokens, shard.bytes) == (layout, len(tokens), len(data))
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
        assert shard.block_crc32 == (zlib.crc32(data),)
        index = before.get(str(Path(shard.file).with_suffix(".idx")))
        assert shard.index_sha256 == (index and hashlib.sha256(index).hexdigest())
        assert shard.index_bytes == len(index or b"")
    dataset = Dataset.open(tmp_path)
    dataset.verify()
    assert dataset.tokenizer.sha256 == BYTES.sha256
    expected = [
        tokens[start : start + 4]
        for tokens in TRAIN
        for start in range(0, len(tokens) - 3, 3)  # windows of T + 1 = 4, T apart
    ]
    ids = np.random.default_rng(1).permutation(len(expected))
    read = dataset.split("train").windows(ids, 3)
    assert read.tolist() == [expected[number] for number in ids]
    windows = dataset.split("validation").windows(np.arange(1), 7)
    assert windows.tolist() == [VALIDATION]


@pytest.mark.parametrize(
    "file, is_validation",
    [
        ("fineweb_val_000001.bin", True),
        ("a/validation/x.bin", True),
        ("VAL/x.bin", True),
        ("TinyStories-valid.bin", True),
        ("val2.bin", True),
        ("medieval.bin", False),
        ("values/x.bin", False),
        ("interval_train.bin", False),
        ("validity.bin", False),
    ],
)
def test_splits_by_name(tmp_path: Path, file: str, is_validation: bool) -> None:
    folder = tmp_path / "val"  # the folder itself says nothing
    write_llm_c(folder / file, VALIDATION)
    assert adopt(folder, BYTES).shards[0].split == ("validation" if is_validation else "train")


def test_the_order_is_that_of_names_train_first(tmp_path: Path) -> None:
    for name in ("b/2.bin", "b/1.bin", "a_val.bin", "c.bin", "b_val.bin", "B.bin"):
        write_llm_c(tmp_path / name, VALIDATION)
    files = [shard.file for shard in adopt(tmp_path, BYTES).shards]
    assert files == ["B.bin", "b/1.bin", "b/2.bin", "c.bin", "a_val.bin", "b_val.bin"]


def test_what_is_not_a_shard_is_skipped(tmp_path: Path) -> None:
    bin_llm_c(tmp_path)
    write_llm_c(tmp_path / ".cache" / "x.bin", VALIDATION)
    write_llm_c(tmp_path / ".hidden.bin", VALIDATION)
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "fineweb_val_000000.idx").write_bytes(b"of something else")
    manifest = adopt(tmp_path, BYTES)
    assert len(manifest.shards) == 3
    assert not any(shard.index_sha256 for shard in manifest.shards)


def test_a_shard_without_end_of_text(tmp_path: Path) -> None:
    write_llm_c(tmp_path / "x.bin", [1, 2, 3])
    assert adopt(tmp_path, BYTES).shards[0].documents == 0


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adopt(folder, BYTES)
    assert not (folder / "manifest.json").exists()


def test_nothing_to_adopt(tmp_path: Path) -> None:
    refused(tmp_path / "x", r"/x: no such folder. Name the folder of the shards\.")
    (tmp_path / "text.txt").write_text("hello")
    refused(tmp_path, r": no .bin or .npy file in it. Name the folder of the shards\.")
    write_llm_c(tmp_path / "x.bin", [])
    refused(tmp_path, r"x.bin: no tokens in it. Move it away\.")
    (tmp_path / "x.bin").write_bytes(b"hello")
    refused(tmp_path, r"x.bin: not a file of tokens")


def test_a_dataset_already(tmp_path: Path) -> None:
    bin_llm_c(tmp_path)
    adopt(tmp_path, BYTES)
    with pytest.raises(UserError, match=r": a dataset already. Use it as it is\."):
        adopt(tmp_path, BYTES)
    file = tmp_path / "manifest.json"
    file.write_text(file.read_text().replace("uint16", "uint32"))
    with pytest.raises(UserError, match=r"manifest.json: sha256: \w+, and the rest has .* damaged"):
        adopt(tmp_path, BYTES)


@pytest.mark.parametrize("second", ["npy", "wide"])
def test_two_kinds(tmp_path: Path, second: str) -> None:
    write_llm_c(tmp_path / "a.bin", VALIDATION)
    write = {"npy": write_npy, "wide": write_llm_c}[second]
    write(tmp_path / "b.npy", VALIDATION, "H" if second == "npy" else "I")
    kind = {"npy": "npy with uint16", "wide": "llm.c with uint32"}[second]
    refused(tmp_path, rf"b.npy: {kind}, and \S+/a.bin is llm.c with uint16. Give each kind a fol")


@pytest.mark.parametrize("token, letter", [(257, "H"), (-1, "i")])
def test_a_token_beyond_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: int, letter: str
) -> None:
    monkeypatch.setattr(adopt_module, "PIECE_TOKENS", 100)
    monkeypatch.setattr(verify, "PIECE_TOKENS", 30)
    tokens = [*TRAIN[0][:250], token, 999]
    write_npy(tmp_path / "x.npy", tokens, letter)
    refused(
        tmp_path,
        rf"x.npy: token {token} at offset 250, and the vocabulary has 257 tokens. Use the tok",
    )


def test_links(tmp_path: Path) -> None:
    write_llm_c(tmp_path / "elsewhere.bin", VALIDATION)
    folder = tmp_path / "d"
    bin_llm_c(folder)
    link = folder / "link.bin"
    link.symlink_to(tmp_path / "elsewhere.bin")
    refused(folder, r"link.bin: a link out of the folder, to \S+/elsewhere.bin. Put the files them")
    link.unlink()
    link.symlink_to(folder / "fineweb_val_000000.bin")
    refused(folder, r"link.bin: the same file as \S+fineweb_val_000000.bin. Delete the link\.")
    link.unlink()
    (tmp_path / "e").mkdir()
    (folder / "real").mkdir()
    for target in (tmp_path / "e", folder / "real"):
        (folder / "more").symlink_to(target)
        refused(folder, rf"d/more: a link to a folder, to {target}. Put the files themselves ther")
        (folder / "more").unlink()


def test_an_index_that_is_a_link_out(tmp_path: Path) -> None:
    megatron(tmp_path / "d")
    index = tmp_path / "d" / "0_text_document.idx"
    index.rename(tmp_path / "x.idx")
    index.symlink_to(tmp_path / "x.idx")
    refused(tmp_path / "d", r"0_text_document.idx: a link out of the folder, to \S+/x.idx. Put the")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_llm_c(tmp_path)
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused(tmp_path, r"closed: cannot be read \(Permission denied\). Make it readable, or move it")


def test_a_manifest_that_cannot_be_written(tmp_path: Path) -> None:
    bin_llm_c(tmp_path)
    (tmp_path / "tokenizer").write_text("in the way")
    with pytest.raises(RunError, match=r": could not be written: .*File exists.*No shard was\."):
        adopt(tmp_path, BYTES)
