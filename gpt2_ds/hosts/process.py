"""Processes of this machine, told apart even when a number is used again. Linux: reads /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_OPTIONS_WITH_VALUE = ("-W", "-X")
_LAUNCHERS = (
    *("deepspeed.launcher.launch", "torchrun", "torch.distributed.run"),
    *("mpirun", "mpiexec", "orterun", "orted", "prterun", "prted"),  # OpenMPI's, old and new
)
RUNNERS = ("deepspeed", "ds", "deepspeed.launcher.runner")
"""The programs that a user types, which start the launchers."""


@dataclass(frozen=True)
class Process:
    """A process, named so that a later one with the same number is not taken for it.

    Args:
        pid: its number.
        start_ticks: when it began, in clock ticks since the machine's start.
    """

    pid: int
    start_ticks: int

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The process that has this number now; None if there is none, or it has ended."""
        fields = _stat(pid)
        if fields is None or fields[0] in ("Z", "X"):
            return None
        return cls(pid, int(fields[19]))

    def lives(self) -> bool:
        """It has not ended. One that ended and was not yet waited for has ended."""
        return Process.find(self.pid) == self

    def age_seconds(self) -> float:
        """How long ago it began; to a hundredth of a second."""
        uptime = float((_PROC / "uptime").read_text().split()[0])
        return uptime - self.start_ticks / os.sysconf("SC_CLK_TCK")

    def parent(self) -> Process | None:
        """The process that started it, or that it was left to."""
        fields = _stat(self.pid)
        return None if fields is None else Process.find(int(fields[1]))

    def program(self) -> str:
        """What it runs: see `program_of`."""
        try:
            return program_of(_words(self.pid))
        except OSError:
            return ""


def _stat(pid: int) -> list[str] | None:
    """What /proc/PID/stat says from the third field on: the state is the first."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # a name may hold spaces and brackets


def _words(pid: int) -> list[str]:
    return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")


def ancestors() -> Iterator[tuple[list[str], Path]]:
    """Argument vector and working directory of each parent process, nearest first."""
    pid = os.getppid()
    while pid > 1 and (fields := _stat(pid)) is not None:
        try:
            words, directory = _words(pid), (_PROC / str(pid) / "cwd").readlink()
        except OSError:
            return
        yield words, directory
        pid = int(fields[1])


def program_of(words: list[str]) -> str:
    """The program of a command line; of Python's, the module or the name of the script."""
    return program_and_words(words)[0]


def program_and_words(words: list[str]) -> tuple[str, list[str]]:
    """The program of a command line as `program_of` names it, and the words that are its own.

    >>> program_and_words(["/venv/bin/python", "-u", "-m", "deepspeed.launcher.launch", "train.py"])
    ('deepspeed.launcher.launch', ['train.py'])
    >>> program_and_words(["python3", "-W", "ignore", "/venv/bin/deepspeed", "-H", "hosts"])
    ('deepspeed', ['-H', 'hosts'])
    >>> program_and_words(["/usr/bin/srun", "deepspeed"])
    ('srun', ['deepspeed'])
    """
    program, rest = Path(words[0]).name, iter(words[1:])
    if not program.startswith(("python", "pypy")):
        return program, list(rest)
    for word in rest:
        if word == "-m":
            return next(rest, ""), list(rest)
        if word in _OPTIONS_WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return Path(word).name, list(rest)
    return program, []


def launchers(parent: Process | None) -> list[Process]:
    """The processes that a rank was started by and must not outlive; none without a launcher.

    On one machine `deepspeed` starts `python -m deepspeed.launcher.launch`, which starts the ranks;
    torchrun starts them itself. With `--launcher openmpi` it starts mpirun, which starts the ranks
    of its own machine, and outlives a `deepspeed` that SIGTERM ends (0.19.8, OpenMPI 4.1).

    Args:
        parent: of the rank.
    """
    if parent is None or parent.program() not in _LAUNCHERS:
        return []
    runner = parent.parent()
    return [parent, runner] if runner and runner.program() in RUNNERS else [parent]
