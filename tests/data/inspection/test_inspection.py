from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.manifest import (
    InputEntry,
    Manifest,
    SkippedDocuments,
    Source,
    read_manifest,
)
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.inspection import inspection
from gpt2_ds.data.inspection.inspection import quantile, stats, verify
from gpt2_ds.data.preparation.adopt import adopt
from tests.conftest import REPOSITORY
from tests.data.format.foreign_shards import write_llm_c, write_megatron, write_npy
from tests.data.small_dataset import EOT, make_dataset

DOCUMENTS = [b"a" * 9, b"b" * 3, b"c" * 100, b"d" * 9, b"", b"e" * 30, "🙂".encode() * 300]
TOKENS = [token for document in DOCUMENTS for token in (EOT, *document)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    half = TOKENS.index(EOT, 50)
    train = [np.array(TOKENS[:half]), np.array(TOKENS[half:])]
    return make_dataset(tmp_path / "d", train, [np.array([EOT, 65, 66])]).path


def test_a_dataset_as_it_was_written(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n_bytes = sum(file.stat().st_size for file in path.glob("*/*.bin"))
    assert verify(path).lines == [f"3 shards, {n_bytes:,} bytes: all as written"]
    assert verify(str(path)).is_fine
    assert f"{len(DOCUMENTS) + 1} documents, 0.0 MB" in capsys.readouterr().err


def flip(file: Path, offset: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def test_every_damaged_file_is_named(path: Path) -> None:
    flip(path / "train" / "shard-00000.bin")
    flip(path / "train" / "shard-00000.idx")
    (path / "train" / "shard-00001.idx").unlink()
    flip(path / "validation" / "shard-00000.bin", 2)
    flip(path / "tokenizer" / "tokenizer.json", 100)
    with pytest.raises(UserError) as found:
        verify(path)
    said = [str(fault).removeprefix(f"{path}/") for fault in found.value.faults]
    begins = [
        "tokenizer/tokenizer.json: ",
        "train/shard-00000.bin: sha256 ",
        "train/shard-00000.idx: sha256 ",
        "train/shard-00001.idx: cannot be read (No such file or directory)",
        "validation/shard-00000.bin: sha256 ",
    ]
    assert [line[: len(begin)] for line, begin in zip(said, begins, strict=True)] == begins
    assert "damaged between bytes 0 and 1254, tokens 0 to 114. Restore" in said[1]


def test_what_only_opening_shows(path: Path) -> None:
    """A shard that is a link to an equal file elsewhere; a token that the tokenizer lacks."""
    shard = path / "train" / "shard-00001.bin"
    shard.rename(path.parent / "x.bin")
    shard.symlink_to(path.parent / "x.bin")
    with pytest.raises(UserError, match=r"00001.bin: a link out of the dataset"):
        verify(path)
    make_dataset(path.parent / "e", [np.array([300])])
    with pytest.raises(UserError, match=r"00000.bin: token 300 at offset 0, and the vocabulary"):
        verify(path.parent / "e")


def test_files_that_are_no_part_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "NAMED_FILES", 2)
    (path / "notes").mkdir()
    (path / ".cache").mkdir()
    for name in ("train/shard-00002.bin", "notes/a.txt", "x", "tokenizer/vocab.bpe", ".cache/x"):
        (path / name).write_text("x")
    assert verify(path).lines[1:] == [
        "not part of the dataset: notes/a.txt",
        "not part of the dataset: tokenizer/vocab.bpe",
        "not part of the dataset: 2 more",
    ]
    (path / "x").unlink()
    assert verify(path).lines[3:] == ["not part of the dataset: 1 more"]
    (path / "train/shard-00002.bin").unlink()
    assert len(verify(path).lines) == 3


def test_an_index_of_another_project_is_no_part(tmp_path: Path) -> None:
    write_llm_c(tmp_path / "x.bin", [1, 2])
    (tmp_path / "x.idx").write_text("x")
    adopt(tmp_path, load_tokenizer("bytes"))
    assert verify(tmp_path).lines[1:] == ["not part of the dataset: x.idx"]


def test_stats(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "PIECE_TOKENS", 7)
    lengths = [len(document) + 1 for document in DOCUMENTS]
    median, p90 = (np.quantile(lengths, q, method="inverted_cdf") for q in (0.5, 0.9))
    sha256 = read_manifest(path).tokenizer.sha256
    assert stats(path).lines == [
        f"tokenizer: bytes, 257 tokens, sha256 {sha256}",
        "stored as: uint16",
        "source: made elsewhere, and adopted",
        f"train: 2 shards, {len(TOKENS):,} tokens, 7 documents",
        f"  tokens a document, end-of-text included: mean {np.mean(lengths):,.1f}, "
        f"median {median}, p90 {p90:,}, max {max(lengths):,}",
        f"              1 to             1  {'#' * 20:40}  1",
        f"              2 to             3  {'':40}  0",
        f"              4 to             7  {'#' * 20:40}  1",
        f"              8 to            15  {'#' * 40}  2",
        f"             16 to            31  {'#' * 20:40}  1",
        f"             32 to            63  {'':40}  0",
        f"             64 to           127  {'#' * 20:40}  1",
        f"            128 to           255  {'':40}  0",
        f"            256 to           511  {'':40}  0",
        f"            512 to         1,023  {'':40}  0",
        f"          1,024 to         2,047  {'#' * 20:40}  1",
        "validation: 1 shard, 3 tokens, 1 document",
        "  tokens a document, end-of-text included: mean 3.0, median 3, p90 3, max 3",
        f"              2 to             3  {'#' * 40}  1",
    ]


def test_a_small_bucket_is_still_seen(tmp_path: Path) -> None:
    tokens = [EOT, 1] * 500 + [EOT] * 1
    bars = stats(make_dataset(tmp_path, [np.array(tokens)]).path).lines[5:7]
    assert [bar.count("#") for bar in bars] == [1, 40]


@given(st.lists(st.integers(0, 50), min_size=1), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_quantiles(values: list[int], share: float) -> None:
    expected = np.quantile(values, share, method="inverted_cdf")
    assert quantile(Counter(values), share) == expected


def test_samples(path: Path) -> None:
    texts = [document.decode() for document in DOCUMENTS] + ["AB"]
    before = len(stats(path).lines)
    lines = stats(path, samples=99).lines[before:]
    assert [line.split(": ", 1)[1] for line in lines] == [repr(text[:200]) for text in texts]
    half = TOKENS.index(EOT, 50)
    assert lines[2].startswith("train/shard-00000.bin, token 14: 'ccc")
    assert lines[3].startswith("train/shard-00001.bin, token 0: 'ddd")
    assert lines[5].startswith(f"train/shard-00001.bin, token {TOKENS.index(101) - 1 - half}: 'eee")
    three = stats(path, samples=3).lines[before:]
    assert len(three) == 3
    assert set(three) < set(lines)
    assert three == stats(path, samples=3).lines[before:]
    with pytest.raises(UserError, match=r"--samples: -1 is below 0. Use 0 or more\."):
        stats(path, samples=-1)


def test_samples_of_adopted_shards(tmp_path: Path) -> None:
    """Megatron-LM's documents are where its index says, with end-of-text last or not at all."""
    bytes_tokenizer = load_tokenizer("bytes")
    write_megatron(tmp_path / "m" / "x.bin", [[[*b"one", EOT]], [], [[*b"two"], [*b"three"]]])
    adopt(tmp_path / "m", bytes_tokenizer)
    lines = stats(tmp_path / "m", samples=9).lines
    assert "train: 1 shard, 12 tokens, 3 documents" in lines
    assert f"              0 to             0  {'#' * 40}  1" in lines
    assert lines[-3:] == [
        "x.bin, token 0: 'one'",
        "x.bin, token 4: ''",
        "x.bin, token 4: 'twothree'",
    ]
    write_npy(tmp_path / "n" / "x.npy", [*b"rest", EOT, *b"1" * 900])
    adopt(tmp_path / "n", bytes_tokenizer)
    assert stats(tmp_path / "n", samples=9).lines[-2:] == [
        "validation: 0 shards, 0 tokens, 0 documents",
        f"x.npy, token 4: '{'1' * 200}'",
    ]


def with_source(path: Path, **changes: Any) -> list[str]:
    source = Source(
        inputs=(InputEntry(name="a.txt", files=2, bytes=4000),),
        validation_inputs=(),
        validation_fraction=0.01,
        text_field="text",
        document_separator=None,
        shuffle_seed=None,
        duplicates=None,
        skipped={},
    ).model_copy(update=changes)
    manifest: Manifest = read_manifest(path).model_copy(update={"source": source})
    manifest.write(path)
    lines = stats(path).lines
    return lines[2 : next(n for n, line in enumerate(lines) if line.startswith("train: "))]


def test_where_it_came_from(path: Path) -> None:
    n_tokens = len(TOKENS) + 3
    assert with_source(path) == [
        "input: a.txt, 2 files, 4,000 bytes",
        "validation: 0.01 of the documents, by a hash of the text",
        "text field: text",
        f"tokens a byte of input: {n_tokens / 4000:.3f}",
    ]
    assert with_source(
        path,
        inputs=(
            InputEntry(
                name="hub:x", files=0, bytes=0, config="en", split="train", revision="abc123"
            ),
        ),
        validation_inputs=(InputEntry(name="b.txt", files=1, bytes=500),),
        document_separator="---",
        shuffle_seed=7,
        duplicates=1234,
        skipped={
            "empty": SkippedDocuments(count=1000, first=("a.txt: line 3", "a.txt: line 9")),
            "not_json": SkippedDocuments(count=1, first=()),
        },
    ) == [
        "input: hub:x, config en, split train, revision abc123",
        "input for validation: b.txt, 1 file, 500 bytes",
        "text field: text",
        "document separator: '---'",
        "shuffled with seed: 7",
        "skipped: 1,000 empty (a.txt: line 3; a.txt: line 9; ...)",
        "skipped: 1 not_json",
        "duplicates skipped: 1,234",
    ]


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch/inspect_data.py", *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


def test_the_command(path: Path) -> None:
    done = command("verify", path)
    assert (done.returncode, done.stdout) == (0, "\n".join(verify(path).lines) + "\n")
    done = command("stats", path, "--samples", "2")
    assert (done.returncode, done.stdout) == (0, "\n".join(stats(path, 2).lines) + "\n")
    flip(path / "train" / "shard-00000.bin")
    flip(path / "train" / "shard-00001.bin")
    done = command("verify", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error: ") == done.stderr.count("damaged between") == 2
    assert "Traceback" not in done.stderr
    helped = command("--help").stdout
    for line in ("verify data/", "stats data/", "diff data/", "fetch s3://", "exit code 1 if"):
        assert line in helped


def test_fetch_is_a_command(path: Path, tmp_path: Path) -> None:
    done = command("fetch", f"file://{path}", "--out", tmp_path / "copy")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/copy is ready\n"), done.stderr
    assert verify(tmp_path / "copy").lines == verify(path).lines
    done = command("fetch", f"file://{path}")
    assert done.returncode == 2
    assert "--out" in done.stderr


def test_a_broken_dataset_has_no_stats(path: Path) -> None:
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | {"dtype": "uint32"}))
    for look in (stats, verify):
        with pytest.raises(UserError, match=r"manifest.json: sha256: "):
            look(path)
