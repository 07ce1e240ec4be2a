"""The files that DeepSpeed's launcher turns into commands on other machines: only plain words."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.hosts.node_environment import NODE_ENVIRONMENT_FILE, is_secret_name
from gpt2_ds.hosts.process import RUNNERS, ancestors, program_and_words

_HOSTFILE_LINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*[ \t]+slots=[1-9][0-9]*$")
_LINE_FIX = "Write `host slots=N`: a plain name or address, N at least 1."
_SENT = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")  # names that DeepSpeed 0.19.8 sends, by prefix
# Options of the `deepspeed` command (0.19.8) without a value; all others have one.
_SWITCHES = (
    *("--module", "--no_python", "--no_local_rank", "--no_ssh", "--no_ssh_check", "--force_multi"),
    *("--save_pid", "--bind_cores_to_rank", "--quiet", "-q", "--help", "-h"),
)
_SHORTEST_HOSTFILE = len("--ho")  # argparse takes a beginning that no other option shares

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")
_ACTIVE = re.compile(r"[$`\"\\\x00-\x08\x0a-\x1f\x7f]|%[hnu%]")  # in "..." of a shell; of pdsh


def check_hostfile() -> None:
    """Refuse a job whose named hostfile is missing or malformed.

    DeepSpeed 0.19.8 warns and trains on this machine alone when the file is missing. It keeps the
    file's name to itself, so the command lines of the parent processes are read (Linux).

    Raises:
        UserError: the file is missing, or a line is not `host slots=N`.
    """
    named = named_hostfile(ancestors())
    if named is not None:
        read_hostfile(named)


def named_hostfile(commands: Iterator[tuple[list[str], Path]]) -> Path | None:
    """The hostfile of the nearest `deepspeed` command, made absolute.

    Args:
        commands: argument vector and working directory of each parent process, nearest first.
    """
    for words, directory in commands:
        program, own = program_and_words(words)
        if program in RUNNERS:
            named = _option_hostfile(own)
            return None if named is None else directory / named
    return None


def _option_hostfile(words: list[str]) -> str | None:
    """The last value of --hostfile before the script, as argparse reads the words."""
    named = None
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            break  # the script; what follows are its own words
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
        else:
            flag, value = word[:2], word[2:].removeprefix("=")
            equals = value
        if not equals:
            if any(switch.startswith(flag) for switch in _SWITCHES):
                continue
            value = next(rest, "")
        long = len(flag) >= _SHORTEST_HOSTFILE and "--hostfile".startswith(flag)
        if flag == "-H" or long:
            named = value
    return named


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots, in the file's order.

    A host is pasted into the command lines of ssh and pdsh, so only a plain name or address is
    taken: nothing that a shell, ssh or pdsh would read as more than that.

    Raises:
        UserError: missing, empty, a host twice, or lines that are not `host slots=N`; each named.
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
        # DeepSpeed ends a line at "\r" too: what follows one is not a comment.
        line = raw if "\r" in raw else raw.partition("#")[0].strip(" \t")
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


def ranks_of(path: Path, hosts: dict[str, int], expected: int | None) -> int:
    """The ranks of a hostfile, checked against `--expect-ranks`.

    Args:
        path: as it was named.
        hosts: what `read_hostfile` gives of it.
        expected: what was typed; None: any number.

    Raises:
        UserError: they are not as many.
    """
    slots = sum(hosts.values())
    if expected not in (None, slots):
        raise user_error(
            f"--expect-ranks {expected}",
            f"{path} has {slots} slots",
            "Correct the hostfile's slots, or the number.",
        )
    return slots


def _why(line: str) -> str:
    """What is special about a refused line, if anything is."""
    if line.endswith("\r"):
        return ", with a Windows line end"
    if "\r" in line:
        return ", which DeepSpeed reads as two lines"
    if line.startswith("-"):
        return ", which ssh would take for an option"
    if re.search(r"[;&|<>`$(){}'\"\\*?!]", line):
        return ", which a shell would run or change"
    if _is_ipv6(line.split()[0]):
        return ", and pdsh takes no IPv6 address: give it a name in /etc/hosts"
    if re.search(r"slots=0+$", line):
        return ", so no rank would run there"
    return ""


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def environment_files() -> list[Path]:
    """The files of variables that DeepSpeed reads, those that are there: at home, then here."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    paths = dict.fromkeys((Path.home() / name, Path(name).absolute()))
    return [path for path in paths if path.is_file()]


def check_environment_file(path: Path) -> None:
    """Refuse a `.deepspeed_env` that DeepSpeed cannot read, would run, or would show to others.

    DeepSpeed 0.19.8 pastes each line into the command of every node, with double quotes around a
    value at most, and prints that command.

    Raises:
        UserError: each line that is not `NAME=value`, whose value the remote shell or pdsh would
            run or change, or whose name is that of a secret. No value is repeated.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise user_error(
            str(path), f"cannot be read ({error.strerror})", "Make it readable, or delete it."
        ) from None
    faults = []
    lines = re.split(r"\r\n|\r|\n", text)  # as Python reads a file's lines
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        if (fault := _variable_fault(f"{path}:{number}", line)) is not None:
            faults.append(fault)
    if faults:
        raise UserError(*faults)


def check_sent_variables() -> None:
    """Refuse variables of this shell that DeepSpeed would send to the nodes in the same way.

    Raises:
        UserError: each whose name is that of a secret, or whose value would be run or changed.
    """
    faults = []
    for name, value in os.environ.items():
        if name.startswith(_SENT) and (fault := _variable_fault(name, f"{name}={value}")):
            fix = f"Unset it in this shell, and write it into {NODE_ENVIRONMENT_FILE}."
            if name.startswith("PYTHON"):  # which that file refuses: it is read too late for them
                fix = "Unset it in this shell; what the nodes need of it, their start-up files set."
            faults.append(replace(fault, fix=fix))
    if faults:
        raise UserError(*faults)


def _variable_fault(where: str, line: str) -> Fault | None:
    """What is wrong with one line of an environment file."""
    name, equals, value = line.partition("=")
    name, value = name.strip(), value.strip()
    if not equals:
        kind = "an empty line" if not line.strip() else "a line without ="
        return Fault(
            where, f"is {kind}, which DeepSpeed ends at", "Write NAME=value, or delete it."
        )
    if not _NAME.match(name):
        return Fault(
            where,
            "names no variable before the =; a remote shell would run the line",
            "Write NAME=value, or delete it: the file knows no comments.",
        )
    if is_secret_name(name):
        return Fault(
            where,
            f"sends {name}, which looks like a secret: DeepSpeed prints it, and the process "
            "lists of all nodes show it",
            f"Move the line to {NODE_ENVIRONMENT_FILE}, whose values appear nowhere.",
        )
    if (found := _ACTIVE.search(value)) is not None:
        return Fault(
            where,
            f"the value of {name} holds {found.group()!r}, which the remote shell or pdsh would "
            "run or change",
            f"Take it out, or move the line to {NODE_ENVIRONMENT_FILE}, which no shell reads.",
        )
    return None
