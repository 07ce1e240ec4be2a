"""A run on paper, before money is spent on it: no device, no network.

examples:
  python launch/plan.py list --gpu H100 --mfu 0.4
  python launch/plan.py show --recipe recipes/gpt2_124m.yaml --gpus 8
  python launch/plan.py schedule --recipe recipes/gpt3_1.3b.yaml
  python launch/plan.py fit --recipe recipes/gpt3_175b.yaml --gpus 64xH100-80 --price 2.5
  python launch/plan.py lint --recipe recipes/gpt3_1.3b.yaml --gpus 16
  python launch/plan.py diff gpt3_1.3b paper
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.errors import exit_code_of
from gpt2_ds.plan import commands


def arguments() -> argparse.Namespace:
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(description=__doc__, **form)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands.COMMANDS.items():
        verb = verbs.add_parser(name, help=command.text, description=__doc__, **form)
        verb.set_defaults(do=command.do)
        command.add_arguments(verb)
    return parser.parse_args()


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `plan.py show ... | head` is no failure
    options = arguments()
    return options.do(options)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
