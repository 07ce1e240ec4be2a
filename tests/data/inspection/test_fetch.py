from __future__ import annotations

import json
import re
import shutil
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.inspection import fetch as fetch_module
from gpt2_ds.data.inspection.fetch import PARTIAL_FILE, fetch
from gpt2_ds.data.preparation.adopt import adopt
from gpt2_ds.files.claimed_file import claimed
from gpt2_ds.files.remote_files import RemoteFolder
from tests.data.format.foreign_shards import write_megatron
from tests.data.small_dataset import EOT, make_dataset
from tests.files.fault_server import FaultServer, serving


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        f"/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shards = [np.array([EOT, *range(n), EOT, n]) for n in (9, 200, 57)]
    make_dataset(tmp_path / "source", shards, validation=[np.array([EOT, 1, 2])])
    return tmp_path / "source"


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    monkeypatch.setattr(
        fetch_module,
        "RemoteFolder",
        lambda address: RemoteFolder(address, attempts=2, first_delay_seconds=0.01),
    )
    with serving(files_of(source)) as running:
        yield running


def test_a_dataset_is_copied_byte_for_byte(
    server: FaultServer, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    fetch(server.address, out)
    assert files_of(out) == files_of(source)
    assert set(server.requests.values()) == {1}
    Dataset.open(out).verify()
    speed = r"0\.0 of 0\.0 MB in [\d.]+ s \([\d.]+ MB/s\)\n"
    assert re.fullmatch(speed, capfd.readouterr().err)

    before = dict(server.requests)
    fetch(server.address, out)
    assert capfd.readouterr().err == (
        f"{out}: checking the files that are there\n{out}: the whole of {server.address} is there\n"
    )
    assert server.requests == before | {"/manifest.json": 2}


def test_an_adopted_dataset_is_copied_with_its_own_kind_of_index(tmp_path: Path) -> None:
    source = tmp_path / "megatron"
    for name in ("train/a", "validation/b"):
        write_megatron(source / f"{name}.bin", [[[1, 2, EOT]], [[3], [4, EOT]]])
    adopt(source, load_tokenizer("bytes"))
    with serving(files_of(source)) as running:
        fetch(running.address, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(source)
    Dataset.open(tmp_path / "out").verify()


def test_an_interrupted_copy_resumes(server: FaultServer, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server.fail("/train/shard-00001.bin", "drop")
    with pytest.raises(RunError, match=r"^train/shard-00001.bin of http.*, at the last of 2"):
        fetch(server.address, out, workers=1)
    assert not (out / "manifest.json").exists()
    assert (out / PARTIAL_FILE).exists()
    with pytest.raises(UserError, match=r"without a manifest.json"):
        Dataset.open(out)
    assert (out / "train" / "shard-00000.bin").exists()
    damaged = bytearray((out / "train" / "shard-00000.idx").read_bytes())
    damaged[0] ^= 1
    (out / "train" / "shard-00000.idx").write_bytes(damaged)

    server.fail("/train/shard-00001.bin", "", times=0)
    fetch(server.address, out)
    assert files_of(out) == files_of(source)
    assert server.requests["/train/shard-00000.bin"] == 1
    assert server.requests["/train/shard-00000.idx"] == 2


def test_the_first_failure_ends_the_other_downloads(server: FaultServer, tmp_path: Path) -> None:
    server.fail("/train/shard-00001.bin", "stall")
    server.fail("/train/shard-00002.bin", "404")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"train/shard-00002.bin: there is no such file"):
        fetch(server.address, tmp_path / "out")
    assert time.monotonic() - began < 20
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("name", ["train/shard-00002.bin", "tokenizer/ranks.tiktoken"])
def test_a_whole_copy_that_lost_a_file_gets_it_back(
    server: FaultServer, source: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    fetch(server.address, out)
    (out / name).unlink()
    fetch(server.address, out)
    assert files_of(out) == files_of(source)
    assert server.requests["/train/shard-00000.bin"] == 1


@pytest.mark.parametrize("name", ["manifest.json", PARTIAL_FILE])
def test_another_dataset_is_refused(server: FaultServer, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(UserError) as error:
        fetch(server.address, out)
    assert str(error.value) == (
        f"{out}/{name}: another dataset than the one at {server.address}. "
        "Give another folder with --out, or delete this one."
    )
    assert [path.name for path in out.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_said(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as error:
        fetch(server.address, tmp_path / "file/out")
    assert str(error.value) == (
        f"{tmp_path}/file/out: cannot be written (Not a directory). "
        "Name a folder that you may write to with --out."
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PARTIAL_FILE).write_bytes(server.files["/manifest.json"])
    (tmp_path / "out/tokenizer").touch()
    with pytest.raises(RunError, match=r"out/tokenizer: cannot be written \(File exists\)"):
        fetch(server.address, tmp_path / "out")


def test_other_files_are_refused(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"not begun by fetch: it has notes.txt, train. Give a new"):
        fetch(server.address, tmp_path / "out")
    with pytest.raises(UserError, match=r"notes.txt: a file, not a folder. Give a folder with"):
        fetch(server.address, tmp_path / "out" / "notes.txt")


def test_an_empty_folder_will_do(server: FaultServer, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fetch(server.address, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(source)


def test_two_at_once_are_refused(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with claimed(tmp_path / "out" / fetch_module.LOCK_FILE):
        with pytest.raises(RunError, match=r"out: another process is fetching into it\.$"):
            fetch(server.address, tmp_path / "out")


def test_a_manifest_that_is_none_is_said_with_its_address(
    server: FaultServer, tmp_path: Path
) -> None:
    server.files["/manifest.json"] = b"<html>"
    with pytest.raises(UserError) as error:
        fetch(server.address, tmp_path / "out")
    assert str(error.value).startswith(f"{server.address}/manifest.json: not JSON")
    server.files["/manifest.json"] = json.dumps({"format": 99}).encode()
    with pytest.raises(UserError, match=r"^http://127.*/manifest.json: format: 99, and this ver"):
        fetch(server.address, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_dataset_there_is_said(server: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/elsewhere: manifest.json: there is no such file"):
        fetch(f"{server.address}/elsewhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(server: FaultServer, source: Path, tmp_path: Path) -> None:
    from gpt2_ds.data.format.tokenizer import load_tokenizer

    text = (source / "tokenizer" / "ranks.tiktoken").read_text()
    ranks = [line.split() for line in text.splitlines()]
    swapped = tmp_path / "swapped.tiktoken"
    swapped.write_text("".join(f"{token} {255 - int(rank)}\n" for token, rank in ranks))
    load_tokenizer(str(swapped)).save(tmp_path / "other")
    for name, content in files_of(tmp_path / "other").items():
        server.files[f"/tokenizer{name}"] = content
    with pytest.raises(UserError, match=r"^http.*: tokenizer: sha256 \w+, and manifest.json says"):
        fetch(server.address, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_disk_that_is_too_small_is_said_before(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(
        RunError, match=r"out: the disk is full: [0-9,]+ bytes are needed, and 1 are free\."
    ):
        fetch(server.address, tmp_path / "out")
    assert set(server.requests) == {"/manifest.json"}
