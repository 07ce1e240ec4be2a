from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.manifest import read_manifest
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.inspection import difference
from gpt2_ds.data.inspection.difference import diff, first_difference
from gpt2_ds.data.preparation.adopt import adopt
from tests.conftest import REPOSITORY
from tests.data.format.foreign_shards import write_npy
from tests.data.small_dataset import EOT, make_dataset

TEXT = np.array([EOT, *b"the quick brown fox jumps over the lazy dog"])


def changed(offset: int, token: int) -> np.ndarray:
    tokens = TEXT.copy()
    tokens[offset] = token
    return tokens


def make(path: Path, *train: np.ndarray) -> Path:
    make_dataset(path, train, [TEXT])
    return path


def test_equal_ones(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", TEXT), make(tmp_path / "b", TEXT)
    report = diff(a, str(b))
    assert report.is_fine
    assert report.lines == ["the same data"]


def test_the_first_token_that_differs(tmp_path: Path) -> None:
    a = make(tmp_path / "a", TEXT, TEXT, TEXT)
    b = make(tmp_path / "b", TEXT, changed(17, ord("?")), changed(1, ord("?")))
    report = diff(a, b)
    assert not report.is_fine
    assert report.lines == [
        f"train: 3 shards, 132 tokens in {a}",
        f"train: 3 shards, 132 tokens in {b}",
        "train: 2 of 3 shards differ, first train/shard-00001.bin",
        "train: in it the first token that differs is at offset 17",
        f"  {a}/train/shard-00001.bin: 102, in 'ick brown fox jumps '",
        f"  {b}/train/shard-00001.bin: 63, in 'ick brown ?ox jumps '",
        "not the same data: the fingerprints differ",
    ]


def test_a_shorter_shard_and_a_missing_one(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", TEXT[:20], TEXT), make(tmp_path / "b", TEXT)
    lines = diff(a, b).lines
    assert "train: 2 of 2 shards differ, first train/shard-00000.bin" in lines
    assert "train: in it the first token that differs is at offset 20" in lines
    assert f"  {a}/train/shard-00000.bin: none, in ' brown fox'" in lines
    assert f"  {b}/train/shard-00000.bin: 32, in ' brown fox jumps ove'" in lines
    c = make(tmp_path / "c", TEXT, TEXT)
    for pair in ((b, c), (c, b)):
        lines = diff(*pair).lines
        assert "train: 1 of 2 shards differ, first train/shard-00001.bin" in lines
        assert "train: it is in one of them only" in lines


def test_equal_tokens_in_another_layout_and_type(tmp_path: Path) -> None:
    a = make(tmp_path / "a", TEXT)
    write_npy(tmp_path / "b" / "x.npy", TEXT.tolist(), "I")
    adopt(tmp_path / "b", load_tokenizer("bytes"))
    report = diff(a, tmp_path / "b")
    assert not report.is_fine
    assert report.lines == [
        f"{a}: stored as: uint16",
        f"{tmp_path}/b: stored as: uint32",
        f"train: 1 shard, 44 tokens in {a}",
        f"train: 1 shard, 44 tokens in {tmp_path}/b",
        "train: 1 of 1 shards differ, first train/shard-00000.bin",
        "train: in it all tokens are equal, and the rest of the file is not",
        f"validation: 1 shard, 44 tokens in {a}",
        f"validation: 0 shards, 0 tokens in {tmp_path}/b",
        "validation: 1 of 1 shards differ, first validation/shard-00000.bin",
        "validation: it is in one of them only",
        "not the same data: the fingerprints differ",
    ]


def test_another_tokenizer(tmp_path: Path) -> None:
    a = make(tmp_path / "a", TEXT)
    ranks = tmp_path / "mine.tiktoken"
    ranks.write_bytes((a / "tokenizer" / "ranks.tiktoken").read_bytes())
    mine = load_tokenizer(str(ranks))
    for name, tokenizer in (("b", load_tokenizer("bytes")), ("c", mine)):
        write_npy(tmp_path / name / "x.npy", TEXT.tolist())
        adopt(tmp_path / name, tokenizer)
    report = diff(tmp_path / "b", tmp_path / "c")
    assert not report.is_fine
    assert report.lines == [
        f"{tmp_path}/b: tokenizer: bytes, 257 tokens, "
        f"sha256 {read_manifest(tmp_path / 'b').tokenizer.sha256}",
        f"{tmp_path}/c: tokenizer: mine.tiktoken, 257 tokens, sha256 {mine.sha256}",
        "not the same data: the fingerprints differ",
    ]


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)), st.integers(1, 4))
def test_first_differences(one: list[int], two: list[int], piece: int) -> None:
    expected = next(
        (n for n in range(max(len(one), len(two))) if one[n : n + 1] != two[n : n + 1]), None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "PIECE_TOKENS", piece)
        found = first_difference(np.array(one, "<u2"), np.array(two, "<i4"))
    assert found == expected


def test_no_such_dataset(tmp_path: Path) -> None:
    a = make(tmp_path / "a", TEXT)
    with pytest.raises(UserError, match=r"/b: no such dataset"):
        diff(a, tmp_path / "b")


def test_the_command(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", TEXT), make(tmp_path / "b", changed(5, 1))
    for other, code in ((a, 0), (b, 1)):
        done = subprocess.run(
            [sys.executable, "launch/inspect_data.py", "diff", a, other],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (code, "\n".join(diff(a, other).lines) + "\n")
        assert done.stderr == ""
