"""What the launcher told this process, and what it kept to itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gpt2_ds.config.errors import Fault, UserError, user_error

_HOSTFILE_LINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*[ \t]+slots=[1-9][0-9]*$")
_LINE_FIX = "Write `host slots=N`: a plain name or address, N at least 1."
_HOSTFILE_FLAGS = ("--hostfile", "-H")


def rank() -> int:
    """This process's number among all; 0 when started without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of the job; 1 when started without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes of this job on this machine; the launchers of DeepSpeed and torch name it."""
    return int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))


def local_ranks() -> range:
    """The ranks on this machine."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    first = rank() - local_rank
    return range(first, first + max(local_world_size(), local_rank + 1))


def nodes() -> int:
    """Machines of the job."""
    return -(-world_size() // local_world_size())


def check_world_size(expected: int | None) -> None:
    """Hold the launcher to `--expect-ranks`.

    Raises:
        UserError: the launcher started another number of processes.
    """
    if expected is not None and expected != world_size():
        raise user_error(
            f"--expect-ranks {expected}",
            f"the launcher started {world_size()} ranks",
            "Check --hostfile and its slots, or --num_gpus, then submit again.",
        )


def check_hostfile() -> None:
    """Refuse a job whose named hostfile is missing or malformed.

    DeepSpeed 0.19.8 warns and trains on this machine alone when the file is missing. It keeps the
    file's name to itself, so the command lines of the parent processes are read (Linux).

    Raises:
        UserError: the file is missing, or a line is not `host slots=N`.
    """
    named = named_hostfile(_ancestors())
    if named is not None:
        read_hostfile(named)


def named_hostfile(commands: Iterator[tuple[list[str], Path]]) -> Path | None:
    """The hostfile of the nearest `deepspeed` command, made absolute.

    Args:
        commands: argument vector and working directory of each parent process, nearest first.
    """
    for words, directory in commands:
        names = [Path(word).name for word in words[:2]]
        launcher = next((i for i, name in enumerate(names) if name in ("deepspeed", "ds")), None)
        if launcher is None:
            continue
        own = words[launcher + 1 :]
        for word, following in zip(own, [*own, ""][1:], strict=True):
            flag, equals, value = word.partition("=")
            if word.endswith(".py"):
                return None  # what follows are the training script's own arguments
            if flag in _HOSTFILE_FLAGS:
                return directory / (value if equals else following)
            if word.startswith("-H"):
                return directory / word.removeprefix("-H")
        return None
    return None


def _ancestors() -> Iterator[tuple[list[str], Path]]:
    """Argument vector and working directory of each parent process, nearest first."""
    process = os.getppid()
    while process > 1:
        folder = Path("/proc") / str(process)
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            status = (folder / "stat").read_text()
            directory = (folder / "cwd").readlink()
        except OSError:
            return
        yield words, directory
        process = int(status.rpartition(")")[2].split()[1])


def _why(line: str) -> str:
    """What is special about a refused line, if anything is."""
    if line.endswith("\r"):
        return ", with a Windows line end"
    if line.startswith("-"):
        return ", which ssh would take for an option"
    return ""


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots.

    Raises:
        UserError: missing, empty, or lines that are not `host slots=N` (a host that begins with
            `-` would be an option of ssh), each named.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise user_error(
            f"--hostfile {path}",
            f"cannot be read ({error.strerror}); DeepSpeed would train on this machine alone",
            "Name a file with a line `host slots=N` for each node.",
        ) from None
    hosts: dict[str, int] = {}
    faults: list[Fault] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.partition("#")[0].strip(" \t")
        if not line:
            continue
        where = f"{path}:{number}"
        if not _HOSTFILE_LINE.match(line):
            faults.append(Fault(where, f"is {line!r}{_why(line)}", _LINE_FIX))
            continue
        host, slots = line.split()[0], int(line.rpartition("=")[2])
        if host in hosts:
            faults.append(Fault(where, f"names {host} again", "Give each host one line."))
        hosts[host] = slots
    if not hosts and not faults:
        faults.append(Fault(str(path), "names no host", "Write `host slots=N` for each node."))
    if faults:
        raise UserError(*faults)
    return hosts
