"""The first half: what can be seen from one machine, before anything is started on another."""

from __future__ import annotations

import shlex
from argparse import Namespace
from functools import partial

from gpt2_ds.config.errors import EXIT_DONE, UserError, faults_of
from gpt2_ds.config.numbers import counted
from gpt2_ds.hosts.hostfile import (
    check_environment_file,
    check_sent_variables,
    environment_files,
    ranks_of,
    read_hostfile,
)
from gpt2_ds.hosts.node_commands import describe_nodes
from gpt2_ds.preflight.reachability import Ssh, commands, is_another, reach
from gpt2_ds.preflight.verdicts import Check, exit_code, ok, table, warning


def check_hosts(args: Namespace) -> int:
    """Read the hostfile, then log in to each of its hosts; print the table.

    Args:
        args: as `preflight.arguments.parse` gives them, with a hostfile.

    Returns:
        The exit code.

    Raises:
        UserError: all that is wrong with the hostfile, and with what DeepSpeed sends along;
            nothing was started on any host.
    """
    hosts = _read(args)
    slots = ranks_of(args.hostfile, hosts, args.expect_ranks)
    ssh = Ssh(args.ssh_port)
    if args.dry_run:
        print(commands(hosts, ssh))
        print(_second_half(args))
        print(describe_nodes(args.hostfile, _own_words(args)))
        return EXIT_DONE
    first = next(iter(hosts))
    alone = len(hosts) == 1 and is_another(first, ssh)
    found = f"{counted(len(hosts), 'host')}, {counted(slots, 'rank')}"
    listed = _only_another(first) if alone else ok("hostfile", found)
    rows = [listed, *reach(hosts, ssh)]
    print(table(rows))
    code = exit_code(rows)
    if code == EXIT_DONE:
        print(f"\nNext, on every rank: {_second_half(args, *(['--force_multi'] if alone else []))}")
    return code


def _only_another(host: str) -> Check:
    """DeepSpeed 0.19.8 starts the ranks of a single host here, whatever its name."""
    what = f"{host} is its only host, and another machine: deepspeed would start the ranks here"
    return warning("hostfile", what, f"Start it on {host}, or give deepspeed --force_multi.")


def _read(args: Namespace) -> dict[str, int]:
    """The hosts and their slots; every mistake of all files at once."""
    hosts: dict[str, int] = {}
    faults = faults_of(
        lambda: hosts.update(read_hostfile(args.hostfile)),
        *(partial(check_environment_file, path) for path in environment_files()),
        check_sent_variables,
    )
    if faults:
        raise UserError(*faults)
    return hosts


def _second_half(args: Namespace, *options: str) -> str:
    """The command of the second half, with more options of deepspeed, quoted for a shell."""
    port = [] if args.ssh_port is None else ["--ssh_port", str(args.ssh_port)]
    words = ["deepspeed", *options, "--hostfile", str(args.hostfile), *port]
    return shlex.join([*words, *_own_words(args)])


def _own_words(args: Namespace) -> list[str]:
    """The script of the second half and its arguments."""
    recipe = "RECIPE" if args.recipe is None else str(args.recipe)
    own = ["launch/preflight.py", "--recipe", recipe]
    if args.template is not None:
        own += ["--template", str(args.template)]
    for word in args.set:
        own += ["--set", word]
    if args.run_dir is not None:
        own += ["--run-dir", str(args.run_dir)]
    if args.expect_ranks is not None:
        own += ["--expect-ranks", str(args.expect_ranks)]
    return own
