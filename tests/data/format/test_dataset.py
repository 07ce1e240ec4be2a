from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.split import Split
from tests.data.small_dataset import make_dataset


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tokens = np.arange(256).repeat(4) % 250
    tokens[[0, 100, 500]] = 256
    make_dataset(tmp_path / "d", [tokens, tokens[:333], tokens[::-1]], [tokens[:50]])
    return tmp_path / "d"


@pytest.fixture
def split(path: Path) -> Split:
    return Dataset.open(path).split("train")


@pytest.mark.parametrize("seq_length", [1, 7, 332, 333, 1023])
def test_windows_are_slices_of_the_shards(path: Path, split: Split, seq_length: int) -> None:
    expected = []
    for shard in sorted((path / "train").glob("*.bin")):
        tokens = np.fromfile(shard, dtype="<u2", offset=1024).astype(np.int64)
        starts = range(0, len(tokens) - seq_length, seq_length)
        expected += [tokens[start : start + seq_length + 1] for start in starts]
    n = split.n_windows(seq_length)
    assert n == len(expected)
    ids = np.random.default_rng(0).permutation(n)
    windows = split.windows(ids, seq_length)
    assert windows.dtype == np.uint16
    assert windows.shape == (n, seq_length + 1)
    assert np.array_equal(windows, np.stack(expected)[ids])


def test_sizes(split: Split) -> None:
    assert split.n_tokens == 1024 + 333 + 1024
    assert split.n_windows(1024) == 0
    assert split.windows(np.empty(0, dtype=np.int64), 7).shape == (0, 8)


@pytest.mark.parametrize("window", [-1, 100])
def test_no_such_window(split: Split, window: int) -> None:
    with pytest.raises(IndexError, match=rf"train: windows {window}..{window} of 0..1"):
        split.windows(np.array([window]), 1000)


def test_few_maps_are_open_at_once(split: Split) -> None:
    split.max_open_shards = 2
    ids = np.arange(split.n_windows(10))
    before = len(list(Path("/proc/self/fd").iterdir()))
    windows = split.windows(ids, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    assert np.array_equal(windows, split.windows(ids, 10))


def test_opening_imports_no_torch() -> None:
    program = (
        "import sys, gpt2_ds.data.format.dataset, gpt2_ds.data.preparation.prepare; "
        "assert not {'torch', 'tiktoken'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Dataset.open(tmp_path / "x")
    assert str(refused.value) == (
        f"{tmp_path}/x: no such dataset. "
        f"Make it: python launch/prepare_data.py INPUT ... --out {tmp_path}/x"
    )
    with pytest.raises(UserError, match=r"there, but without a manifest.json. Make it: python"):
        Dataset.open(tmp_path)


def edit(path: Path, **changes: Any) -> None:
    file = path / "manifest.json"
    content = json.loads(file.read_text()) | changes
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(content | {"sha256": digest}))


def edit_shard(path: Path, **changes: Any) -> None:
    shards = json.loads((path / "manifest.json").read_text())["shards"]
    edit(path, shards=[shards[0], shards[1] | changes, *shards[2:]])


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"format": 3},
            r"manifest.json: format: 3, and this version of the code reads 2. Use the version that "
            r"made it, or prepare the dataset again\.",
        ),
        ({"dtype": "int8"}, "manifest.json: dtype: Input should be 'uint16', 'uint32' or 'int32'"),
        ({"extra": 1}, "manifest.json: extra: Extra inputs are not permitted"),
        ({"tokenizer": {"name": "bytes", "sha256": "x"}}, "manifest.json: tokenizer.sha256: "),
        ({"versions": {"python": 3}}, "manifest.json: versions.python: Input should be a valid"),
    ],
)
def test_wrong_manifests(path: Path, changes: dict[str, Any], message: str) -> None:
    edit(path, **changes)
    with pytest.raises(UserError, match=message):
        Dataset.open(path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_manifest_that_is_not_json(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json: not JSON \(.*Restore it, or prepare"):
        Dataset.open(path)


def test_a_manifest_that_is_a_list(path: Path) -> None:
    (path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest.json: format: None, and this version"):
        Dataset.open(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"file": "../x.bin"},
            "shards.1.file: Value error, '../x.bin' is not a .bin or .npy file inside",
        ),
        ({"file": "/x.bin"}, "'/x.bin' is not a .bin or .npy file inside the dataset"),
        ({"file": "train/x"}, "'train/x' is not a .bin or .npy file inside the dataset"),
        ({"file": "train//shard-00000.bin"}, "'train//shard-00000.bin' is there twice"),
        ({"tokens": "333"}, "manifest.json: shards.1.tokens: Input should be a valid integer"),
        ({"file": "train/gone.bin"}, "train/gone.bin: cannot be read"),
        (
            {"tokens": 334},
            r"00001.bin: \(type, tokens, documents, bytes\) are \('uint16', 333, 2, 1690\), "
            r"and manifest.json says \('uint16', 334, 2, 1690\). Restore",
        ),
    ],
)
def test_wrong_shard_entries(path: Path, changes: dict[str, Any], message: str) -> None:
    edit_shard(path, **changes)
    with pytest.raises(UserError, match=message):
        Dataset.open(path)


def test_all_faults_at_once(path: Path) -> None:
    edit(path, dtype="int8", extra=1)
    with pytest.raises(UserError) as refused:
        Dataset.open(path)
    assert len(refused.value.faults) == 2


def test_a_link_out_of_the_dataset(path: Path) -> None:
    shard = path / "train" / "shard-00001.bin"
    shard.rename(path.parent / "elsewhere.bin")
    shard.symlink_to(path.parent / "elsewhere.bin")
    with pytest.raises(
        UserError, match=r"00001.bin: a link out of the dataset, to .*elsewhere.bin"
    ):
        Dataset.open(path)


def test_a_linked_dataset_opens(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    assert Dataset.open(tmp_path / "link").split("train").n_tokens == 2381


def test_another_tokenizers_shard(path: Path) -> None:
    shard = path / "train" / "shard-00001.bin"
    data = bytearray(shard.read_bytes())
    data[32] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"00001.bin: made with tokenizer \w+, and manifest.json s"):
        Dataset.open(path)


def test_another_tokenizer(path: Path) -> None:
    for shard in path.glob("*/*.bin"):  # shards of other projects do not name one
        data = bytearray(shard.read_bytes())
        data[32:64] = bytes(32)
        shard.write_bytes(data)
    Dataset.open(path)
    edit(path, tokenizer={"name": "bytes", "sha256": "0" * 64})
    with pytest.raises(UserError, match=r"d/tokenizer: sha256 \w+, and manifest.json says 0000"):
        Dataset.open(path)


def test_no_such_split(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [np.arange(10)])
    with pytest.raises(UserError, match=r": validation: the dataset has no such split. Prepare it"):
        dataset.split("validation")


def test_verify(path: Path) -> None:
    dataset = Dataset.open(path)
    dataset.verify()
    shard = path / "train" / "shard-00002.bin"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    sha256 = dataset.manifest.shards[2].sha256
    for part in (0, 1, 3):
        dataset.verify(part, 4)
    with pytest.raises(UserError, match=rf"00002.bin: sha256 \w+, expected {sha256}: damaged b"):
        dataset.verify(2, 4)


def test_verify_reads_the_index(path: Path) -> None:
    index = path / "train" / "shard-00000.idx"
    index.write_bytes(np.array([0, 100, 501], dtype="<u4").tobytes())
    with pytest.raises(UserError, match=r"00000.idx: sha256 \w+, expected \w+: damaged"):
        Dataset.open(path).verify()


def test_the_fingerprint_is_of_the_data_alone(path: Path) -> None:
    fingerprint = Dataset.open(path).fingerprint
    edit(path, versions={"python": "4"})
    (path / "train" / "shard-00001.bin").rename(path / "train" / "other.bin")
    (path / "train" / "shard-00001.idx").rename(path / "train" / "other.idx")
    edit_shard(path, file="train/other.bin")
    assert Dataset.open(path).fingerprint == fingerprint
    edit_shard(path, sha256="0" * 64)
    assert Dataset.open(path).fingerprint != fingerprint


def test_a_manifest_whose_own_hash_differs(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"versions": {}', '"versions": {"python": "4"}'))
    with pytest.raises(UserError, match=r"manifest.json: sha256: \w+, and the rest has \w+: damag"):
        Dataset.open(path)
