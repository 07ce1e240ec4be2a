"""What `deepspeed --hostfile` would run on each node, shown without running it."""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt2_ds.hosts.hostfile import read_hostfile
from gpt2_ds.hosts.launcher import MASTER_PORT

_OURS = ("--hostfile", "--dry-run", "--local_rank")  # the last is the launcher's
# What a shell acts on within double quotes, and what it acts on without; pdsh acts on %h, %n, %u.
_ACTIVE_QUOTED = re.compile(r"[$`\\\n]|%[hnu%]")
_ACTIVE_BARE = re.compile(r"[$`\\\"';&|<>()*?#~\t\n]|\{\S*(,|\.\.)\S*\}|%[hnu%]|^$")


def describe_nodes(hostfile: Path, words: Sequence[str]) -> str:
    """For `--dry-run --hostfile`: the ranks and the command of each node, quoted.

    Before it deepspeed exports the variables that it sends along; they are not shown.

    Args:
        hostfile: of the job.
        words: the script and its arguments, as they were typed; those that only a dry run has are
            removed.

    Raises:
        UserError: the hostfile is missing or malformed.
    """
    hosts = read_hostfile(hostfile)
    words = without_own_options(words)
    lines = []
    first = 0
    for number, (host, slots) in enumerate(hosts.items()):
        ranks = f"ranks {first} to {first + slots - 1}" if slots > 1 else f"rank {first}"
        lines += [f"{host}, {ranks}, runs:", f"  {node_command(hosts, number, words)}"]
        first += slots
    changed = [word for word in words if is_changed_by_a_shell(word)]
    # These two deepspeed does not quote at all.
    paths = (str(Path.cwd()), sys.executable)
    changed += [path for path in paths if " " in path or is_changed_by_a_shell(path)]
    if changed:
        lines.append(
            f"warning: the shell of a node would change {shlex.join(changed)}: deepspeed quotes a "
            "word only with spaces in it, and only by double quotes. Put it into a recipe file, or "
            "the project into another folder."
        )
    return "\n".join(lines)


def node_command(hosts: dict[str, int], node: int, words: Sequence[str]) -> str:
    """The command of one node, as a shell takes it.

    The first host's name stands for its address, which deepspeed asks it for.

    Args:
        hosts: slots by host.
        node: its number.
        words: the script and its arguments.
    """
    world = {host: list(range(slots)) for host, slots in hosts.items()}
    command = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        f"--world_info={base64.urlsafe_b64encode(json.dumps(world).encode()).decode()}",
        f"--node_rank={node}",
        f"--master_addr={next(iter(hosts))}",
        f"--master_port={MASTER_PORT}",
        *words,
    ]
    return f"cd {shlex.quote(str(Path.cwd()))}; {shlex.join(command)}"


def without_own_options(words: Sequence[str]) -> list[str]:
    """The words of a real run.

    >>> without_own_options(
    ...     ["train.py", "--local_rank=0", "--hostfile", "h", "--dry-run", "--recipe", "r"]
    ... )
    ['train.py', '--recipe', 'r']
    """
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag not in _OURS:
            kept.append(word)
        elif flag != "--dry-run" and not equals:
            next(rest, None)
    return kept


def is_changed_by_a_shell(word: str) -> bool:
    """Whether a word is another one after DeepSpeed 0.19.8 has sent it over ssh.

    It puts a word with spaces between double quotes, and leaves others as they are.

    >>> [is_changed_by_a_shell(word) for word in ("a.b=[1,2]", "a={b: 1, c: 2}", "a={b,c}", "$x y")]
    [False, False, True, True]
    """
    active = _ACTIVE_QUOTED if " " in word else _ACTIVE_BARE
    return active.search(word) is not None
