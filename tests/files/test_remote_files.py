from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.files import remote_files as remote_module
from gpt2_ds.files.claimed_file import claimed
from gpt2_ds.files.remote_files import RemoteFolder, is_remote
from gpt2_ds.files.remote_source import Stopped
from tests.files.fault_server import FaultServer, serving, shard

CONTENT = shard(7, 3 * 2**20 + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "train/shard-00000.bin"
PATH = f"/owt/{NAME}"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving({PATH: CONTENT, "/owt/manifest.json": b"{}"}) as running:
        yield running


def folder_of(server: FaultServer, attempts: int = 4, stall_seconds: float = 30.0) -> RemoteFolder:
    return RemoteFolder(
        f"{server.address}/owt/",
        attempts=attempts,
        first_delay_seconds=0.01,
        stall_seconds=stall_seconds,
    )


def download(remote: RemoteFolder, out: Path, n_bytes: int = len(CONTENT)) -> bytes:
    remote.download(NAME, out / "shard.bin", n_bytes, SHA256)
    return (out / "shard.bin").read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_remote() -> None:
    assert is_remote("hf://datasets/me/owt")
    assert is_remote("memory://owt")
    assert not is_remote("data/owt")
    assert not is_remote("/data/s3:/owt")


def test_a_file_comes_whole_in_one_request(server: FaultServer, tmp_path: Path) -> None:
    remote = folder_of(server)
    assert download(remote, tmp_path) == CONTENT
    assert names(tmp_path) == ["shard.bin"]
    assert remote.read("manifest.json") == b"{}"
    assert server.requests == {PATH: 1, "/owt/manifest.json": 1}
    assert "Range" not in server.seen[0]
    assert server.seen[0]["Accept-Encoding"] == "identity"


def test_a_name_may_have_any_character(server: FaultServer) -> None:
    server.files["/owt/50%25%20%23a%3Fb.json"] = b"found"
    assert folder_of(server).read("50% #a?b.json") == b"found"


def test_a_file_is_on_the_disk_before_it_has_its_name(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink())
    )
    download(folder_of(server), tmp_path)
    assert synced == [tmp_path / "shard.bin.tmp", tmp_path]


def test_a_server_that_hangs_up_is_tried_again(server: FaultServer, tmp_path: Path) -> None:
    server.fail(PATH, "hangup")
    with pytest.raises(RunError, match=r"Server disconnected, 0 of \d+ bytes, at the last of 2"):
        download(folder_of(server, attempts=2), tmp_path)
    assert server.requests[PATH] == 4  # aiohttp asks twice by itself


@pytest.mark.parametrize(
    "kind, said",
    [
        ("500", "HTTP 500"),
        ("503", "HTTP 503"),
        ("429", "HTTP 429"),
        ("408", "HTTP 408"),
        ("drop", f" of {len(CONTENT)} bytes"),
        ("short", f"{len(CONTENT) // 2} bytes came, expected {len(CONTENT)}"),
        ("long", f"more than {len(CONTENT)} bytes came, expected {len(CONTENT)}"),
        ("flip", f"came, expected {SHA256}"),
        ("stall", "no byte came in time"),
    ],
)
def test_a_failure_that_passes_is_tried_again_and_said(
    server: FaultServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, said: str
) -> None:
    stall_seconds = 1.0 if kind == "stall" else 30.0
    server.fail(PATH, kind, times=2)
    assert download(folder_of(server, stall_seconds=stall_seconds), tmp_path) == CONTENT
    assert server.requests[PATH] == 3
    first, second = capfd.readouterr().err.splitlines()
    assert said in first
    assert NAME in first
    assert server.address in first
    assert "attempt 2 of 4 in 0.0 s" in first
    assert "attempt 3 of 4" in second

    server.fail(PATH, kind)
    (tmp_path / "shard.bin").unlink()
    with pytest.raises(RunError) as error:
        download(folder_of(server, attempts=2, stall_seconds=stall_seconds), tmp_path)
    assert str(error.value).startswith(f"{NAME} of {server.address}/owt/: ")
    assert said in str(error.value)
    assert str(error.value).endswith(", at the last of 2 attempts.")
    assert names(tmp_path) == []
    assert server.requests[PATH] == 5


def test_a_server_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    with serving({}) as server:
        remote = folder_of(server, attempts=2)
    with pytest.raises(RunError, match=r"Cannot connect.*, 0 of \d+ bytes, at the last of 2"):
        download(remote, tmp_path)
    with pytest.raises(RunError, match=r"manifest.json of http.*Cannot connect"):
        remote.read("manifest.json")


@pytest.mark.parametrize(
    "status, said",
    [
        ("404", "there is no such file. Check the address: it must be that of a prepared dataset"),
        ("410", "there is no such file"),
        ("401", "access is refused: HTTP 401"),
        ("403", "access is refused: HTTP 403"),
        ("400", "access is refused: HTTP 400"),
    ],
)
def test_a_missing_or_refused_file_is_not_tried_again(
    server: FaultServer, tmp_path: Path, status: str, said: str
) -> None:
    server.fail(PATH, status)
    with pytest.raises(UserError) as error:
        download(folder_of(server), tmp_path)
    assert f"/owt/: {NAME}: {said}" in str(error.value)
    assert server.requests[PATH] == 1
    assert names(tmp_path) == []


def test_delays_double_up_to_a_limit(server: FaultServer, tmp_path: Path) -> None:
    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return False

    waited: list[float] = []
    server.fail(PATH, "503")
    with pytest.raises(RunError):
        RemoteFolder(f"{server.address}/owt").download(
            NAME, tmp_path / "shard.bin", 1, SHA256, Clock()
        )
    full = [0.5, 1, 2, 4, 8, 16, 30]
    assert len(waited) == 7
    assert all(most / 2 <= got <= most for got, most in zip(waited, full, strict=True))
    assert len({got / most for got, most in zip(waited, full, strict=True)}) > 1


def test_what_is_too_long_is_not_read_to_its_end(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def counted(limit: int, data: bytes) -> bytes:
        nonlocal seen
        seen += len(data)
        return data

    chunks = remote_module.RemoteSource.chunks

    def counting(self: object, name: str, limit: int, stop: threading.Event) -> Iterator[bytes]:
        for data in chunks(self, name, limit, stop):  # type: ignore[arg-type]
            yield counted(limit, data)

    monkeypatch.setattr(remote_module.RemoteSource, "chunks", counting)
    with pytest.raises(RunError, match="more than 1000 bytes came, expected 1000"):
        download(folder_of(server, attempts=1), tmp_path, n_bytes=1000)
    assert seen == 1001


def test_a_small_file_that_is_large_is_refused(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "MAX_READ_BYTES", 2)
    assert folder_of(server).read("manifest.json") == b"{}"
    monkeypatch.setattr(remote_module, "MAX_READ_BYTES", 1)
    with pytest.raises(UserError, match=r"manifest.json: larger than 1 bytes. Check the address"):
        folder_of(server).read("manifest.json")


def test_the_old_file_stays_until_the_new_one_is_right(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "shard.bin").write_bytes(b"old")
    server.fail(PATH, "flip", times=1)
    with pytest.raises(RunError):
        download(folder_of(server, attempts=1), tmp_path)
    assert (tmp_path / "shard.bin").read_bytes() == b"old"
    assert download(folder_of(server), tmp_path) == CONTENT


def test_what_a_dead_process_left_is_overwritten(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "shard.bin.tmp").write_bytes(b"x" * 2 * len(CONTENT))
    assert download(folder_of(server), tmp_path) == CONTENT
    assert names(tmp_path) == ["shard.bin"]


def test_two_downloads_of_one_file_do_not_write_into_each_other(
    server: FaultServer, tmp_path: Path
) -> None:
    stop = threading.Event()
    with claimed(tmp_path / "shard.bin.tmp") as mine:
        assert mine is not None
        with claimed(tmp_path / "shard.bin.tmp") as other:
            assert other is None
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Stopped):
            folder_of(server).download(NAME, tmp_path / "shard.bin", len(CONTENT), SHA256, stop)
    assert server.requests[PATH] == 0
    assert download(folder_of(server), tmp_path) == CONTENT


@pytest.mark.parametrize("fault", ["stall", "503"])
def test_a_download_is_broken_off_at_once(server: FaultServer, tmp_path: Path, fault: str) -> None:
    server.fail(PATH, fault)
    remote = RemoteFolder(f"{server.address}/owt", first_delay_seconds=60)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        remote.download(NAME, tmp_path / "shard.bin", len(CONTENT), SHA256, stop)
    assert time.monotonic() - began < 5
    assert names(tmp_path) == []
    assert fault != "stall" or server.left.wait(5)  # no connection is left open


def test_a_slow_download_is_no_stalled_one(tmp_path: Path) -> None:
    with serving({PATH: CONTENT}, latency_seconds=0.2) as server:
        assert download(folder_of(server, attempts=1, stall_seconds=0.9), tmp_path) == CONTENT


def test_a_full_disk_is_said_with_numbers(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, begin: int, n_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError) as error:
        download(folder_of(server), tmp_path)
    needed = f"{len(CONTENT):,} bytes are needed"
    said = rf"shard.bin.tmp: the disk is full: {needed}, and [0-9,]+ are free\. Make room on"
    assert re.search(said, str(error.value))
    assert names(tmp_path) == []
    assert server.requests[PATH] == 0


def test_a_folder_that_cannot_be_written_is_said(server: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"shard.bin.tmp: cannot be written \(No such file"):
        download(folder_of(server), tmp_path / "none")


def test_password_and_signature_are_sent_and_never_said(
    server: FaultServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.fail(PATH, "503")
    address = server.address.replace("://", "://me:pass@") + "/owt?X-Amz-Signature=a%2Fb"
    remote = RemoteFolder(address, attempts=2, first_delay_seconds=0.01)
    with pytest.raises(RunError) as run:
        download(remote, tmp_path)
    server.fail(PATH, "403")
    with pytest.raises(UserError) as refused:
        download(remote, tmp_path)
    for text in (str(run.value), str(refused.value), capfd.readouterr().err, remote.address):
        assert "127.0.0.1" in text
        assert not re.search("pass|me:|Signature|a%2Fb", text)
    assert server.seen[0]["Authorization"] == "Basic bWU6cGFzcw=="
    assert server.seen[0]["path"] == f"{PATH}?X-Amz-Signature=a%2Fb"
