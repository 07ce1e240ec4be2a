"""What can be typed after `launch/preflight.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gpt2_ds.config.errors import user_error


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What was typed.

    Raises:
        UserError: neither a hostfile, a recipe nor --numerics is given, or --numerics with another;
            --ssh-port is not a port.
    """
    parser = argparse.ArgumentParser(
        description="Preflight checks. With --hostfile: can each host be reached? With --recipe: "
        "does every rank fit the others and the recipe? With --numerics: does DeepSpeed compute "
        "here what PyTorch computes?",
        epilog="example: python launch/preflight.py --hostfile hosts && deepspeed --hostfile hosts "
        "launch/preflight.py --recipe recipes/gpt2_124m.yaml --expect-ranks 16. Exit codes: 0 all "
        "is well, or only warnings; 1 a check failed; 2 the input is wrong.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--hostfile", type=Path, help="check that ssh reaches each host (without --recipe)")
    add("--ssh-port", type=int, metavar="N", help="port of sshd on the hosts (~/.ssh/config)")
    add("--recipe", type=Path, help="what will be trained: a file of recipes/")
    add("--template", type=Path, help="how it is sharded: a file of ds_configs/ (the recipe's own)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one value")
    add("--run-dir", type=Path, help="where the run will be written (runs/<recipe name>)")
    add("--numerics", action="store_true", help="compare every ZeRO stage with plain PyTorch, here")
    add("--expect-ranks", type=int, metavar="N", help="refuse another number of ranks")
    add("--dry-run", action="store_true", help="print the commands that would be run, and stop")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    args = parser.parse_args(words)
    if args.numerics and (args.hostfile or args.recipe):
        what = "cannot be combined with --hostfile or --recipe"
        raise user_error("--numerics", what, "Give it alone, under deepspeed.")
    if args.hostfile is None and args.recipe is None and not args.numerics:
        raise user_error(
            "launch/preflight.py",
            "needs --hostfile, --recipe or --numerics",
            "Give --hostfile FILE; or, under deepspeed, --recipe FILE or --numerics.",
        )
    if args.ssh_port is not None and not 1 <= args.ssh_port <= 65535:
        raise user_error(f"--ssh-port {args.ssh_port}", "is not a port", "Give 1 to 65535.")
    return args
