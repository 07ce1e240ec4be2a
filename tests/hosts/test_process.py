"""Processes are told apart, and a launcher is known by its command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2_ds.hosts.process import Process, ancestors, launchers, program_of


def find(pid: int) -> Process:
    process = Process.find(pid)
    assert process is not None
    return process


def test_this_process_and_its_parent() -> None:
    this = find(os.getpid())
    assert this.pid == os.getpid()
    assert this.lives()
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    assert this.program().encode() in {word.rpartition(b"/")[2] for word in words[1:]} | set(words)
    parent = this.parent()
    assert (parent.pid if parent else 0) == os.getppid()


def test_the_start_is_the_one_that_ps_would_tell() -> None:
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    child = subprocess.Popen(["sleep", "30"])
    seconds = find(child.pid).start_ticks / os.sysconf("SC_CLK_TCK")
    child.kill()
    child.wait()
    assert began - 1 < seconds < began + 5


def test_a_number_that_was_given_again_is_another_process() -> None:
    this = find(os.getpid())
    assert not replace(this, start_ticks=this.start_ticks - 1).lives()


def test_what_ended_does_not_live_even_before_it_was_waited_for() -> None:
    child = subprocess.Popen(["sleep", "30"])
    process = find(child.pid)
    assert process.lives()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
    assert os.path.exists(f"/proc/{child.pid}/stat")  # noqa: PTH110
    assert not process.lives()
    child.wait()
    assert not process.lives()
    assert Process.find(child.pid) is None
    assert process.parent() is None
    assert process.program() == ""


def test_a_name_with_brackets_and_spaces(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, ") S 1 (")  # noqa: PTH118
    os.symlink("/bin/sleep", script)  # noqa: PTH211
    child = subprocess.Popen([script, "30"])
    time.sleep(0.2)
    parent = find(child.pid).parent()
    assert parent is not None
    assert parent.pid == os.getpid()
    child.kill()
    child.wait()


@pytest.mark.parametrize(
    "command, program",
    [
        ("deepspeed --num_gpus 2 train.py", "deepspeed"),
        ("/venv/bin/python3.11 /venv/bin/deepspeed train.py", "deepspeed"),
        ("python -u -m deepspeed.launcher.launch --x train.py", "deepspeed.launcher.launch"),
        ("python -X dev -W ignore -m torch.distributed.run x.py", "torch.distributed.run"),
        ("python launch/train.py deepspeed", "train.py"),
        ("python -m", ""),
        ("python", "python"),
        ("bash -c deepspeed", "bash"),
        ("", ""),
    ],
)
def test_the_program_of_a_command(command: str, program: str) -> None:
    assert program_of(command.split() or [""]) == program


def test_without_a_launcher_there_is_none() -> None:
    assert launchers(None) == []
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert launchers(find(child.pid)) == []
    child.communicate()


@pytest.mark.parametrize("name", ["mpirun", "prterun", "orted"])
def test_a_launcher_and_the_command_above_it(tmp_path: Path, name: str) -> None:
    command = tmp_path / "deepspeed"
    words = f"[{name!r}, '60'], executable='/bin/sleep'"
    command.write_text(f"import subprocess\nprint(subprocess.Popen({words}).pid)\ninput()\n")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-u", str(command)], **pipes) as runner:
        assert runner.stdout is not None
        pid = int(runner.stdout.readline())
        while Process.find(pid) is None or find(pid).program() != name:  # until it is that program
            time.sleep(0.01)
        assert launchers(find(pid)) == [find(pid), find(runner.pid)]
        os.kill(pid, signal.SIGKILL)
        runner.communicate()


def test_the_age_of_a_process() -> None:
    before = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = find(child.pid)
    time.sleep(0.3)
    age = process.age_seconds()
    assert 0.25 <= age <= time.monotonic() - before + 0.02
    child.communicate()


def test_the_parents_of_this_process() -> None:
    parents = list(ancestors())
    if os.getppid() > 1:
        words, folder = parents[0]
        assert words[0]
        assert folder.is_absolute()
