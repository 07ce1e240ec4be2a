"""What the launcher says is checked before a rank trains with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt2_ds.config import launcher
from gpt2_ds.config.launcher import check_hostfile, check_world_size, named_hostfile, read_hostfile
from tests.config.small_recipe import faults_of, only_fault


def hostfile(folder: Path, content: bytes) -> Path:
    path = folder / "hostfile"
    path.write_bytes(content)
    return path


def test_a_good_hostfile(tmp_path: Path) -> None:
    content = b"# two nodes\nworker-1 slots=8\n\n10.0.0.2\t slots=4  # the second\nfe80::1 slots=1"
    hosts = read_hostfile(hostfile(tmp_path, content))
    assert hosts == {"worker-1": 8, "10.0.0.2": 4, "fe80::1": 1}


@pytest.mark.parametrize(
    "line, why",
    [
        ("-oProxyCommand=x slots=2", ", which ssh would take for an option"),
        ("w;reboot slots=2", ""),
        ("$(reboot) slots=2", ""),
        ("`reboot` slots=2", ""),
        ("w slots=0", ""),
        ("w slots=-1", ""),
        ("w slots=two", ""),
        ("w slots=2 slots=3", ""),
        ("w slots = 2", ""),
        ("w", ""),
        ("slots=2", ""),
        ("w slots=2\r", ", with a Windows line end"),
        ("wörker slots=2", ""),
        ("w\u00a0slots=2", ""),
        ("w\x0bslots=2", ""),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = hostfile(tmp_path, f"good slots=1\n{line}\n".encode())
    assert only_fault(lambda: read_hostfile(path)) == (
        f"{path}:2: is {line!r}{why}. Write `host slots=N`: a plain name or address, N at least 1."
    )


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = hostfile(tmp_path, b"a slots=1\nb\nc slots=2\na slots=4\n\xff\xfe slots=1\n")
    faults = faults_of(lambda: read_hostfile(path))
    assert [fault.where for fault in faults] == [f"{path}:{line}" for line in (2, 4, 5)]
    assert str(faults[1]) == f"{path}:4: names a again. Give each host one line."


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# none\n"])
def test_an_empty_hostfile(tmp_path: Path, content: bytes) -> None:
    path = hostfile(tmp_path, content)
    message = only_fault(lambda: read_hostfile(path))
    assert message == f"{path}: names no host. Write `host slots=N` for each node."


def test_a_missing_hostfile(tmp_path: Path) -> None:
    assert only_fault(lambda: read_hostfile(tmp_path / "no")) == (
        f"--hostfile {tmp_path / 'no'}: cannot be read (No such file or directory); DeepSpeed "
        "would train on this machine alone. Name a file with a line `host slots=N` for each node."
    )
    assert "Is a directory" in only_fault(lambda: read_hostfile(tmp_path))


FOLDER = Path("/job")


@pytest.mark.parametrize(
    "command, found",
    [
        ("deepspeed --hostfile h launch/train.py --hostfile other", "h"),
        ("python /venv/bin/deepspeed --hostfile h launch/train.py", "h"),
        ("/venv/bin/ds -H h launch/train.py", "h"),
        ("deepspeed -Hh launch/train.py", "h"),
        ("deepspeed -H=h launch/train.py", "h"),
        ("deepspeed --hostfile=h launch/train.py", "h"),
        ("deepspeed --num_gpus 2 --hostfile /etc/h launch/train.py", "/etc/h"),
        ("deepspeed launch/train.py --hostfile other", None),
        ("python /venv/bin/deepspeed launch/train.py --hostfile other", None),
        ("deepspeed launch/train.py", None),
        ("bash -c deepspeed --hostfile h", None),
        ("deepspeed", None),
        ("", None),
    ],
)
def test_the_hostfile_of_a_command(command: str, found: str | None) -> None:
    parents = [(["bash", "-c", "x"], Path("/other")), (command.split(), FOLDER)]
    assert named_hostfile(iter(parents)) == (FOLDER / found if found else None)


def test_the_nearest_launcher_counts() -> None:
    near, far = ["deepspeed", "launch/train.py"], ["deepspeed", "--hostfile", "h", "x.py"]
    assert named_hostfile(iter([(near, FOLDER), (far, FOLDER)])) is None


def test_the_parents_of_this_process() -> None:
    parents = list(launcher._ancestors())
    if os.getppid() > 1:
        words, folder = parents[0]
        assert words[0]
        assert folder.is_absolute()


def test_a_named_hostfile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostfile(tmp_path, b"w")
    parents = [(["deepspeed", "--hostfile", "hostfile", "x.py"], tmp_path)]
    monkeypatch.setattr(launcher, "_ancestors", lambda: iter(parents))
    assert only_fault(check_hostfile).startswith(f"{path}:1: is 'w'.")
    path.write_text("w slots=1")
    check_hostfile()


def test_expect_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    check_world_size(None)
    check_world_size(8)
    assert only_fault(lambda: check_world_size(16)) == (
        "--expect-ranks 16: the launcher started 8 ranks. "
        "Check --hostfile and its slots, or --num_gpus, then submit again."
    )


def test_ranks_and_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    read = (launcher.rank, launcher.world_size, launcher.local_world_size, launcher.nodes)
    assert [call() for call in read] == [0, 1, 1, 1]
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "12")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [call() for call in read] == [5, 12, 8, 2]
    monkeypatch.setenv("LOCAL_SIZE", "4")
    assert [call() for call in read] == [5, 12, 4, 3]


def test_the_ranks_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "6"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert list(launcher.local_ranks()) == [4, 5, 6]  # its own at least
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert list(launcher.local_ranks()) == [4, 5, 6, 7]
