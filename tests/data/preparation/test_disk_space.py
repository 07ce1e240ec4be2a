from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.data.preparation import blocks, disk_space, units
from tests.data.preparation.prepared_text import contents, prepare_texts, texts, write_rows

Usage = namedtuple("Usage", "total used free")


def start(source: Path, out: Path, **keywords: Any) -> None:
    prepare_texts([source], out, shard_tokens=20_000, validation_fraction=0.1, **keywords)


def test_the_next_shard_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 50_000)
    source = write_rows(tmp_path / "a.jsonl", texts(2000))
    shown = iter([10**9] * 40 + [10_000, 10_000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, next(shown)))
    with pytest.raises(RunError) as refused:
        start(source, tmp_path / "out")
    monkeypatch.undo()
    found = re.fullmatch(
        rf"{tmp_path}/.out.partial: the disk is full: about ([0-9,]+) bytes are still to be "
        r"written, and 10,000 are free. Make room on this disk. Complete shards kept: 40. The same "
        "command resumes.",
        str(refused.value),
    )
    assert found, str(refused.value)
    start(source, tmp_path / "out")
    start(source, tmp_path / "unbroken")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
    sizes = sorted((tmp_path / "out" / "train").glob("*.bin"))[40:]
    left = sum(path.stat().st_size for path in sizes)
    assert 0.85 * left < int(found[1].replace(",", "")) < 1.3 * left


@pytest.mark.parametrize("number", [28, 122])  # no space, and over quota
def test_what_the_system_says_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = write_rows(tmp_path / "a.jsonl", texts(3))

    def full(*args: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(units, "write_shard", full)
    with pytest.raises(RunError, match=r"full: about [0-9,]+ bytes are .* The same command begins"):
        start(source, tmp_path / "out")


def test_a_size_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 99))
    with pytest.raises(RunError, match="about 100 bytes are still to be written, and 99 are free"):
        disk_space.require_space(tmp_path, 100, 0)
    disk_space.require_space(tmp_path, 99, 1000)  # what comes later need not fit yet


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    words = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(path)]
    if (done := subprocess.run(words, capture_output=True, text=True)).returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("is_foreseen", [True, False])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_disk_that_is_really_full(
    tmp_path: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    deduplicate: bool,
    is_foreseen: bool,
) -> None:
    source = write_rows(tmp_path / "a.jsonl", texts(1000))
    (small_disk / "ballast").write_bytes(bytes(150_000))
    out = small_disk / "out"
    if not is_foreseen:
        monkeypatch.setattr(units, "require_space", lambda *_: None)
    with pytest.raises(
        RunError, match=r"the disk is full: about .* kept: [1-9]\d*. The same comma"
    ):
        start(source, out, deduplicate=deduplicate)
    monkeypatch.undo()
    assert not out.exists()
    assert not list((small_disk / ".out.partial").rglob("*.tmp"))
    (small_disk / "ballast").unlink()
    words = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(words, check=True)
    start(source, out, deduplicate=deduplicate)
    start(source, tmp_path / "unbroken", deduplicate=deduplicate)
    assert contents(out) == contents(tmp_path / "unbroken")


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, small_disk: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", texts(1000))
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    needed = source.stat().st_size // 2  # a token has about 4 bytes of text, and 2 of its own
    with pytest.raises(
        RunError, match=rf"full: about {needed:,} bytes .* and 0 are free. Make room"
    ):
        start(source, small_disk / "out")


def test_a_disk_that_is_full_of_hashes(tmp_path: Path, small_disk: Path) -> None:
    """The file of hashes grows before there is a shard."""
    source = write_rows(tmp_path / "a.jsonl", [str(i) for i in range(20_000)])
    with pytest.raises(RunError, match=r"the disk is full: about .* The same command begins again"):
        prepare_texts([source], small_disk / "out", deduplicate=True)
