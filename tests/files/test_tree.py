"""Files that a manifest describes: fetched side by side, whole ones left; a fault ends all."""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.files import tree
from gpt2_ds.files.heartbeat import Heartbeat
from gpt2_ds.files.remote_files import RemoteFolder
from gpt2_ds.files.tree import ExpectedFile, fetch_files, in_parallel, missing_files
from tests.files.fault_server import FaultServer, serving, shard

CONTENTS = {f"deep/{n}/file": shard(n, 1000 + n) for n in range(8)}
FILES = [
    ExpectedFile(name, len(content), hashlib.sha256(content).hexdigest())
    for name, content in CONTENTS.items()
]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    files = {f"/run/{name}": content for name, content in CONTENTS.items()}
    with serving(files) as running:
        yield running


def remote_of(server: FaultServer) -> RemoteFolder:
    return RemoteFolder(server.address, attempts=2, first_delay_seconds=0.01)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_files_come_side_by_side(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = remote_of(server)
    told: list[int] = []
    download, four = remote.download, threading.Barrier(4, timeout=20)

    def together(*args: Any) -> None:
        four.wait()
        download(*args)

    monkeypatch.setattr(remote, "download", together)
    fetch_files(remote, FILES, tmp_path, under="run/", workers=4, tell=told.append)
    assert contents(tmp_path) == CONTENTS
    assert told == [sum(map(len, CONTENTS.values()))]


def test_no_more_than_the_workers_at_a_time() -> None:
    now: list[int] = []
    most = 0

    def work(item: int) -> None:
        nonlocal most
        now.append(item)
        most = max(most, len(now))
        time.sleep(0.01)
        now.remove(item)

    in_parallel(work, range(20), 3)
    assert most == 3


def test_what_is_told_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "TELL_SECONDS", 0.01)
    told: list[int] = []
    enough = threading.Event()

    def tell() -> None:
        told.append(1)
        if len(told) == 3:
            enough.set()

    in_parallel(lambda _: enough.wait(20) and None, [0], 4, tell=tell)
    assert len(told) >= 4


def test_only_what_is_missing_is_fetched(server: FaultServer, tmp_path: Path) -> None:
    whole, damaged, short, absent = FILES[:4]
    for file in (whole, damaged, short):
        (tmp_path / file.name).parent.mkdir(parents=True)
        (tmp_path / file.name).write_bytes(CONTENTS[file.name])
    (tmp_path / damaged.name).write_bytes(CONTENTS[damaged.name][::-1])
    (tmp_path / short.name).write_bytes(b"x")
    beats: list[str] = []
    heartbeat = Heartbeat(lambda doing, alone: beats.append(doing)).of_main_thread("")
    missing = missing_files(tmp_path, FILES[:4], heartbeat=heartbeat)
    assert missing == [damaged, short, absent]
    assert len(beats) == 2  # what is too short is not hashed
    fetch_files(remote_of(server), missing, tmp_path, under="run/")
    assert missing_files(tmp_path, FILES[:4]) == []
    assert server.requests[f"/run/{whole.name}"] == 0


def test_the_first_fault_ends_the_others(server: FaultServer, tmp_path: Path) -> None:
    server.fail(f"/run/{FILES[0].name}", "stall")
    server.fail(f"/run/{FILES[1].name}", "404")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"deep/1/file: there is no such file"):
        fetch_files(remote_of(server), FILES, tmp_path, under="run/", workers=2)
    assert time.monotonic() - began < 20  # a stalled one would wait a minute
    assert server.requests.total() == 2
    assert contents(tmp_path) == {}


def test_an_interrupt_ends_the_others(server: FaultServer, tmp_path: Path) -> None:
    server.fail(f"/run/{FILES[0].name}", "stall")

    def interrupt(done_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "TELL_SECONDS", 0.01)
        with pytest.raises(KeyboardInterrupt):
            fetch_files(remote_of(server), FILES, tmp_path, under="run/", workers=2, tell=interrupt)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_disk_that_is_too_small_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = sum(map(len, CONTENTS.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, needed - 1))
    with pytest.raises(RunError) as error:
        missing_files(tmp_path, FILES)
    assert str(error.value).startswith(
        f"{tmp_path}: the disk is full: {needed:,} bytes are needed, and {needed - 1:,} are free. "
        "Make room on this disk, then give"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))  # a bucket's
    assert missing_files(tmp_path, FILES) == FILES


def test_a_file_that_cannot_be_read_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, heartbeat: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / FILES[0].name).parent.mkdir(parents=True)
    (tmp_path / FILES[0].name).write_bytes(CONTENTS[FILES[0].name])
    monkeypatch.setattr(tree, "sha256_of", refused)
    with pytest.raises(RunError) as error:
        missing_files(tmp_path, FILES)
    assert str(error.value) == (
        f"{tmp_path / FILES[0].name}: Input/output error. "
        "See what the system says of this disk, then give the same command again."
    )
