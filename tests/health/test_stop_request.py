"""Signals and a launcher that is gone are remembered, in real processes and real chains of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpt2_ds.health.stop_request import LAUNCHER_GONE, StopRequest
from gpt2_ds.hosts.process import Process
from tests.conftest import REPOSITORY

_RANK = """
import os, sys, time
from pathlib import Path
if "GPT2_DS_SUPERVISED" not in os.environ and "--supervise" in sys.argv:
    import subprocess
    own = os.environ | {"GPT2_DS_SUPERVISED": "1"}
    sys.exit(subprocess.run([sys.executable, *sys.argv], env=own).returncode)
from gpt2_ds.health.stop_request import StopRequest
folder = Path(sys.argv[1])
os.close(1)  # the terminal is gone
with StopRequest() as stop:
    (folder / "begun").write_text(str(os.getpid()))
    while stop.reason is None and not (folder / "end").exists():
        time.sleep(0.02)
    (folder / "reason").write_text(str(stop.reason))
    while not (folder / "end").exists():
        time.sleep(0.02)
    (folder / "last_reason").write_text(str(stop.reason))
(folder / "left").touch()
time.sleep(0.5)
(folder / "saved").touch()
"""
_STARTS_NEXT = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)
"""


def wait_for(path: Path, seconds: float = 60) -> str:
    """What the file holds, once it is there."""
    end = time.monotonic() + seconds
    while not path.exists() or (path.name in ("reason", "begun") and not path.read_text()):
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.02)
    return path.read_text()


@contextmanager
def rank_below(folder: Path, *commands: list[str | Path]) -> Iterator[list[Process]]:
    """A rank below a chain of processes; gives them all, the rank last."""
    (folder / "rank.py").write_text(_RANK)
    words = [word for command in commands for word in command]
    first = subprocess.Popen(
        [sys.executable, *words, folder / "rank.py", folder]
        + (["--supervise"] if "supervise" in folder.name else []),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{folder}:{REPOSITORY}"},
    )
    chain: list[Process] = []
    try:
        wait_for(folder / "begun")
        process = Process.find(int((folder / "begun").read_text()))
        while process is not None and process.pid != os.getpid():
            chain.insert(0, process)
            process = process.parent()
        yield chain
    finally:
        (folder / "end").touch()
        for process in chain or [Process(first.pid, 0)]:
            if process.lives():
                os.kill(process.pid, signal.SIGKILL)
        first.kill()
        first.wait()


def deepspeed_commands(folder: Path) -> tuple[list[str | Path], list[str | Path]]:
    """Scripts that look like DeepSpeed's two: each starts the words behind it."""
    package = folder / "deepspeed/launcher"
    package.mkdir(parents=True)
    for file in (package / "__init__.py", package.parent / "__init__.py"):
        file.touch()
    (package / "launch.py").write_text(_STARTS_NEXT)
    (folder / "bin").mkdir()
    (folder / "bin/deepspeed").write_text(_STARTS_NEXT)
    return [folder / "bin/deepspeed"], ["-u", "-m", "deepspeed.launcher.launch"]


ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def hangup(action: signal.Handlers) -> Iterator[None]:
    """What processes started in this block do at SIGHUP: end, or nothing, as under nohup."""
    before = signal.signal(signal.SIGHUP, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_the_first_signal_counts_and_no_other_does_harm(tmp_path: Path, name: str) -> None:
    with hangup(signal.SIG_DFL), rank_below(tmp_path) as (rank,):
        os.kill(rank.pid, signal.Signals[name])
        assert wait_for(tmp_path / "reason") == name
        for other in ALL:
            os.kill(rank.pid, other)
        (tmp_path / "end").touch()
        wait_for(tmp_path / "left")
        assert (tmp_path / "last_reason").read_text() == name
        for other in ALL:
            os.kill(rank.pid, other)  # late: it is leaving
        wait_for(tmp_path / "saved")


def test_under_nohup_a_closed_terminal_is_no_reason(tmp_path: Path) -> None:
    with hangup(signal.SIG_IGN), rank_below(tmp_path) as (rank,):
        os.kill(rank.pid, signal.SIGHUP)
        time.sleep(0.5)
        (tmp_path / "end").touch()
        assert wait_for(tmp_path / "reason") == "None"


def test_without_a_signal_there_is_no_reason(tmp_path: Path) -> None:
    with rank_below(tmp_path):
        time.sleep(2.5)
        (tmp_path / "end").touch()
        assert wait_for(tmp_path / "reason") == "None"


def test_a_process_started_inside_or_after_dies_of_a_signal() -> None:
    before = {number: signal.getsignal(number) for number in ALL}
    try:
        with StopRequest() as stop:
            assert stop.reason is None
        child = subprocess.Popen(["sleep", "30"])
        child.terminate()
        assert child.wait(10) == -signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("victim", [0, 1])
def test_below_deepspeed_either_of_its_processes_may_go(
    tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    runner, launch = deepspeed_commands(tmp_path)
    with rank_below(tmp_path, runner, launch) as chain:
        assert len(chain) == 3
        time.sleep(1.5)
        assert not (tmp_path / "reason").exists()
        os.kill(chain[victim].pid, number)
        assert wait_for(tmp_path / "reason", seconds=10) == LAUNCHER_GONE


@pytest.mark.parametrize("victim", [0, 1])
def test_a_supervisor_in_between_is_passed_over(tmp_path: Path, victim: int) -> None:
    folder = tmp_path / "supervise"
    folder.mkdir()
    runner, launch = deepspeed_commands(folder)
    with rank_below(folder, runner, launch) as chain:
        assert len(chain) == 4
        os.kill(chain[victim].pid, signal.SIGKILL)
        assert wait_for(folder / "reason", seconds=10) == LAUNCHER_GONE


def test_torchrun(tmp_path: Path) -> None:
    (tmp_path / "torchrun").write_text(_STARTS_NEXT)
    with rank_below(tmp_path, [tmp_path / "torchrun"]) as chain:
        os.kill(chain[0].pid, signal.SIGKILL)
        assert wait_for(tmp_path / "reason", seconds=10) == LAUNCHER_GONE


@pytest.mark.parametrize("above", ["shell", "launch below a shell"])
def test_any_other_parent_may_go(tmp_path: Path, above: str) -> None:
    """A shell that started it under nohup."""
    _, launch = deepspeed_commands(tmp_path)
    (tmp_path / "shell.py").write_text(_STARTS_NEXT)
    commands = [[tmp_path / "shell.py"]] + ([launch] if above != "shell" else [])
    with rank_below(tmp_path, *commands) as chain:
        os.kill(chain[0].pid, signal.SIGKILL)
        time.sleep(2.5)
        assert not (tmp_path / "reason").exists()
        assert chain[-1].lives()
