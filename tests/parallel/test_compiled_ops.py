"""Locks of dead builds go, those of live ones stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.parallel.compiled_ops import can_build, clear_stale_lock, held_open


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock that a build of some_op left."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    path = tmp_path / "some_op/lock"
    path.parent.mkdir()
    path.touch()
    return path


def make_older(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def held(lock: Path) -> Iterator[Path]:
    """The lock, held open by a live process."""
    code = "import sys; stream = open(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield lock
        process.communicate()


def test_a_process_that_ends_meanwhile_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder != Path(f"/proc/{os.getpid()}/fd"):
            raise ProcessLookupError(3, "No such process", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with (tmp_path / "lock").open("w"):
        assert held_open(tmp_path / "lock")
    assert not held_open(tmp_path / "lock")


def executable(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_what_a_build_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not can_build()
    executable(tmp_path / "ninja")
    assert not can_build()
    executable(tmp_path / "c++")
    assert can_build()
    monkeypatch.setenv("CXX", "my-compiler")
    assert not can_build()
    executable(tmp_path / "my-compiler")
    assert can_build()
    (tmp_path / "ninja").unlink()
    assert not can_build()


def test_without_a_lock_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    clear_stale_lock("some_op", nodes=1)
    assert capsys.readouterr().err == ""


def test_a_stale_lock_is_removed_and_named(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_older(lock, 75)
    clear_stale_lock("some_op", nodes=1)
    assert not lock.exists()
    assert capsys.readouterr().err in {
        f"warning: {lock}: a build of some_op died {age} s ago and left its lock. Removing it.\n"
        for age in (75, 76)
    }


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_lock_that_is_held_stays(
    held: Path, nodes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    make_older(held, 5000)
    clear_stale_lock("some_op", nodes=nodes)
    assert held.exists()
    said = capsys.readouterr().err
    assert said.startswith(f"{held}: another process is building some_op (500")
    assert said.endswith(" s); waiting.\n")


def test_with_several_nodes_age_decides(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_older(lock, 600)
    clear_stale_lock("some_op", nodes=2)
    assert lock.exists()
    assert "another process is building some_op" in capsys.readouterr().err
    make_older(lock, 1000)
    clear_stale_lock("some_op", nodes=2)
    assert not lock.exists()
    assert "warning: " in capsys.readouterr().err
