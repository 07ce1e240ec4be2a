from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.data.preparation.partial_folder import partial_path
from gpt2_ds.data.preparation.seen_texts import SeenTexts
from tests.data.preparation.prepared_text import (
    documents_of,
    prepare_texts,
    texts,
    write_rows,
)


def digests(*words: str) -> npt.NDArray[np.uint8]:
    hashes = b"".join(hashlib.sha256(word.encode()).digest() for word in words)
    return np.frombuffer(hashes, np.uint8).reshape(-1, 32)


def test_the_first_is_new(tmp_path: Path) -> None:
    seen = SeenTexts(tmp_path / "seen", units=0)
    assert seen.are_new(digests("a", "b", "a")).tolist() == [True, True, False]
    assert seen.are_new(digests("a")).tolist() == [True]  # it was asked for, not added
    seen.add(digests("a", "b"), unit=0)
    assert seen.are_new(digests("a", "c", "b")).tolist() == [False, True, False]
    seen.commit()
    seen.add(digests("c"), unit=1)
    seen.close()  # killed
    seen = SeenTexts(tmp_path / "seen", units=1)
    assert seen.are_new(digests("a", "b", "c")).tolist() == [False, False, True]
    seen.add(digests("c"), unit=1)
    seen.commit()
    seen.close()  # killed before unit 1 came into the journal
    seen = SeenTexts(tmp_path / "seen", units=1)
    assert seen.are_new(digests("a", "b", "c")).tolist() == [False, False, True]
    seen.close()


def test_over_both_splits_and_all_inputs(tmp_path: Path) -> None:
    documents = texts(100)
    one = write_rows(tmp_path / "one.jsonl", documents + documents[::3])
    two = write_rows(tmp_path / "two.jsonl", [documents[5], "new", documents[50], "new"])
    (tmp_path / "v.txt").write_text(documents[7])
    (tmp_path / "w.txt").write_text("only here")
    manifest = prepare_texts(
        [one, two],
        tmp_path / "out",
        deduplicate=True,
        shard_tokens=5000,
        validation=[tmp_path / "v.txt", tmp_path / "w.txt"],
    )
    assert documents_of(tmp_path / "out", "train") == [*documents, "new"]
    assert documents_of(tmp_path / "out", "validation") == ["only here"]
    assert manifest.source is not None
    assert manifest.source.duplicates == 34 + 3 + 1


def test_without_the_flag_all_stay(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["a", "b", "a"])
    manifest = prepare_texts([path], tmp_path / "out", validation_fraction=0)
    assert documents_of(tmp_path / "out", "train") == ["a", "b", "a"]
    assert manifest.source is not None
    assert manifest.source.duplicates is None


def test_a_damaged_file_of_hashes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["a", "b", "a"])
    partial = partial_path(tmp_path / "out")
    partial.mkdir()
    (partial / "seen.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match="could not be written: file is not a database"):
        prepare_texts([path], tmp_path / "out", deduplicate=True)
