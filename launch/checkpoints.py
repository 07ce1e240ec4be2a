"""The checkpoints of a run: list, check, prune or convert them.

examples:
  python launch/checkpoints.py list --run runs/quickstart
  python launch/checkpoints.py verify --run runs/quickstart --step 600
  python launch/checkpoints.py prune --run runs/quickstart --keep-last 1 --dry-run
  python launch/checkpoints.py reshard --run runs/quickstart --out runs/universal/step_700
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.checkpoint import commands as checkpoint_commands
from gpt2_ds.config.errors import exit_code_of

COMMANDS = {
    "list": (checkpoint_commands.list_checkpoints, "step, tokens, size, validation loss of each"),
    "verify": (checkpoint_commands.verify, "read all, name each damaged file"),
    "prune": (checkpoint_commands.prune, "delete what the recipe's rules do not keep"),
    "reshard": (
        checkpoint_commands.reshard,
        "write DeepSpeed's universal form, for other programs",
    ),
}


def arguments() -> dict[str, object]:
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(description=__doc__, **form)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = {}
    for name, (do, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=__doc__, **form)
        command.set_defaults(do=do)
        add[name] = command.add_argument
        add[name]("--run", type=Path, required=True, help="folder of the run")
    add["verify"]("--step", type=int, metavar="N", help="this checkpoint alone (all)")
    add["reshard"]("--step", type=int, metavar="N", help="of the checkpoint (the newest)")
    add["reshard"]("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    add["prune"]("--keep-last", type=int, metavar="N", help="keep the newest N (the recipe's)")
    text = "keep each step that is a multiple of N, too; 0: none (the recipe's)"
    add["prune"]("--keep-every", type=int, metavar="N", help=text)
    add["prune"]("--dry-run", action="store_true", help="delete nothing")
    return vars(parser.parse_args())


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `checkpoints.py list ... | head` must not fail
    options = arguments()
    return options.pop("do")(**options)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
