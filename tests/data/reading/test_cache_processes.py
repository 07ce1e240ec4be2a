"""Several processes on one folder, and processes that die."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2_ds.data.reading.cache import ShardCache
from gpt2_ds.data.reading.cache_folder import file_name
from gpt2_ds.files.remote_files import RemoteFolder
from tests.data.reading.cached_shards import downloads, until, watched
from tests.files.fault_server import entry_of, serving, shard

ROOT = Path(__file__).resolve().parents[3]
N_BYTES = 2**17
SHARDS = [shard(number, N_BYTES) for number in range(8)]
ENTRIES = [entry_of(f"train/{number}.bin", content) for number, content in enumerate(SHARDS)]
FILES = {f"/{entry.file}": content for entry, content in zip(ENTRIES, SHARDS, strict=True)}


def read_all(address: str, folder: str, slots: int, epochs: int, pause_seconds: float) -> None:
    """What each process does."""
    remote = RemoteFolder(address, first_delay_seconds=0.01)
    cache = ShardCache(Path(folder), slots * N_BYTES)
    sequence = list(range(len(SHARDS))) * epochs
    left = list(sequence)
    with downloads() as downloaded:
        cache.follow(lambda: [(remote, ENTRIES[number]) for number in dict.fromkeys(tuple(left))])
        print("ready", flush=True)
        sys.stdin.readline()
        for position, number in enumerate(sequence):
            left[:] = sequence[position:]
            while True:
                try:
                    data = cache.path(remote, ENTRIES[number]).read_bytes()
                    break
                except FileNotFoundError:  # another process, further on, deleted it
                    continue
            assert data == SHARDS[number]
            time.sleep(pause_seconds)
        cache.close()
    print(len(downloaded))


def start(*arguments: object) -> subprocess.Popen[str]:
    code = f"from tests.data.reading.test_cache_processes import read_all; read_all(*{arguments!r})"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise AssertionError(process.communicate()[1])
    return process


def downloaded_by(process: subprocess.Popen[str]) -> int:
    out, err = process.communicate("go\n", timeout=120)
    assert (process.returncode, err) == (0, "")
    return int(out)


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize("slots", [8, 3])
def test_three_processes_share_one_folder(tmp_path: Path, slots: int) -> None:
    with serving(FILES, latency_seconds=0.01) as server:
        with watched(tmp_path) as sizes:
            arguments = (server.address, str(tmp_path), slots, 3)
            processes = [start(*arguments, pause) for pause in (0.0, 0.001, 0.003)]
            for process in processes:
                go(process)
            total = sum(downloaded_by(process) for process in processes)
    assert max(sizes) <= slots * N_BYTES
    assert total <= sum(server.requests.values())  # more: downloads that gave way to another
    if slots == 8:
        assert set(server.requests.values()) == {1}
        assert total == 8
    assert not list(tmp_path.glob("*.tmp"))


def test_what_a_killed_process_left_is_cleaned_and_downloaded_again(tmp_path: Path) -> None:
    with serving(FILES) as server:
        server.fail("/train/0.bin", "stall", times=1)
        process = start(server.address, str(tmp_path), 1, 1, 0)
        assert server.stalled.wait(20)
        (left,) = tmp_path.glob("*.tmp")
        assert left.stat().st_size == N_BYTES
        process.kill()
        process.communicate()
        cache = ShardCache(tmp_path, N_BYTES)
        remote = RemoteFolder(server.address)
        for number in (1, 0):  # of another shard there was left no room
            path = cache.path(remote, ENTRIES[number])
            assert path.read_bytes() == SHARDS[number]
            assert [path.name for path in tmp_path.glob("*.*")] != [left.name]
        assert not list(tmp_path.glob("*.tmp"))


def test_a_stalled_download_does_not_hold_up_the_end_of_the_process(tmp_path: Path) -> None:
    with serving(FILES) as server:
        server.fail("/train/0.bin", "stall")
        code = (
            "import sys\n"
            "from tests.data.reading.test_cache_processes import *\n"
            f"remote = RemoteFolder({server.address!r})\n"
            f"cache = ShardCache(Path({str(tmp_path)!r}), N_BYTES)\n"
            "cache.follow(lambda: [(remote, ENTRIES[0])])\n"
            "sys.stdin.readline()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stalled.wait(20)
        began = time.monotonic()
        _, err = process.communicate("go\n", timeout=60)
        assert (process.returncode, err) == (0, "")
        assert time.monotonic() - began < 4
    assert not list(tmp_path.glob("*.tmp"))


def test_one_process_waits_for_the_download_of_another(tmp_path: Path) -> None:
    with serving(FILES, latency_seconds=0.5) as server:
        process = start(server.address, str(tmp_path), 8, 1, 0)
        until(lambda: server.requests["/train/0.bin"] == 1)
        cache = ShardCache(tmp_path, 8 * N_BYTES)
        with downloads() as downloaded:
            path = cache.path(RemoteFolder(server.address), ENTRIES[0])
        assert path.read_bytes() == SHARDS[0]
        assert path.name == file_name(ENTRIES[0])
        assert downloaded == []
        assert server.requests["/train/0.bin"] == 1
        process.kill()
        process.communicate()
