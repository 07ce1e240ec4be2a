"""Look at a dataset: whether it is as it was written, what is in it, what a step reads of it.

examples:
  python launch/inspect_data.py verify data/python_stdlib
  python launch/inspect_data.py stats data/python_stdlib --samples 3
  python launch/inspect_data.py diff data/python_stdlib /backup/python_stdlib
  python launch/inspect_data.py where --recipe recipes/quickstart.yaml --step 100
  python launch/inspect_data.py fetch s3://bucket/fineweb --out data/fineweb
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.errors import EXIT_DONE, EXIT_RUN_FAILED, exit_code_of
from gpt2_ds.data.inspection import difference, fetch, inspection, provenance

COMMANDS = (
    (inspection.verify, "read all, name each damaged file", {"directory": "a dataset"}),
    (inspection.stats, "sizes, lengths of documents, source", {"directory": "a dataset"}),
    (difference.diff, "exit code 1 if the data differs", {"a": "a dataset", "b": "another"}),
    (provenance.where, "shard, offset and text of what a step reads", {}),
    (fetch.fetch, "copy a dataset, checking it", {"address": "its folder: s3://, https://"}),
)


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `inspect_data.py ... | head` is not a failure
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **form)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, text, arguments in COMMANDS:
        command = commands.add_parser(run.__name__, help=text, description=__doc__, **form)
        command.set_defaults(run=run)
        for name, about in arguments.items():
            command.add_argument(name, help=about)
    add_to = {name: command.add_argument for name, command in commands.choices.items()}
    add_to["stats"]("--samples", type=int, default=0, metavar="N", help="documents to show (0)")
    where = add_to["where"]
    where("--recipe", type=Path, required=True, metavar="FILE", help="a file of recipes/")
    where("--step", type=int, required=True, metavar="N", help="optimizer step; 1 is the first")
    where("--set", action="append", default=[], metavar="KEY=VALUE", help="as for training")
    where("--characters", type=int, default=200, metavar="N", help="of each text; 0: all (200)")
    add_to["fetch"]("--out", type=Path, required=True, metavar="DIR", help="where it goes")
    options = vars(parser.parse_args())
    report = options.pop("run")(**options)
    print(*report.lines, sep="\n")
    return EXIT_DONE if report.is_fine else EXIT_RUN_FAILED


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
