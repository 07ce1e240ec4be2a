"""Train a recipe: deepspeed launch/train.py --recipe recipes/quickstart.yaml."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.errors import EXIT_DONE, exit_code_of
from gpt2_ds.config.launcher import check_hostfile, check_world_size, rank, world_size
from gpt2_ds.config.run_plan import describe, resolve_run
from gpt2_ds.train.inputs import open_inputs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a recipe. The same command, given again, goes on with the run.",
        epilog="example: deepspeed launch/train.py --recipe recipes/quickstart.yaml "
        "--set optimizer.lr=1e-3 --run-dir runs/lr_1e-3",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", type=Path, required=True, help="what to train: a file of recipes/")
    add("--template", type=Path, help="how to shard it: a file of ds_configs/ (the recipe's own)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one value")
    add("--run-dir", type=Path, help="where the run is written (runs/<recipe name>)")
    add("--max-steps", type=int, metavar="N", help="stop after step N; the schedule stays")
    add("--expect-ranks", type=int, metavar="N", help="refuse to start with another number")
    add("--dry-run", action="store_true", help="print every value, its origin, what follows; stop")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


def main() -> int:
    args = arguments()
    check_hostfile()
    if not args.dry_run:  # which shows the run of any number of ranks
        check_world_size(args.expect_ranks)
    plan = resolve_run(
        args.recipe,
        world_size=world_size() if args.expect_ranks is None else args.expect_ranks,
        template_file=args.template,
        overrides=args.set,
        run_dir=args.run_dir,
        max_steps=args.max_steps,
    )
    if args.dry_run:
        if rank() == 0:
            print(describe(plan))
        return EXIT_DONE
    corpus = open_inputs(plan)

    from gpt2_ds.train.run import train_and_leave  # torch and deepspeed: after the quick checks

    train_and_leave(plan, corpus)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
