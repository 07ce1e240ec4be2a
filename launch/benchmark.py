"""Measure a recipe's speed here: deepspeed launch/benchmark.py --recipe recipes/quickstart.yaml."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.deepspeed_release import check_deepspeed
from gpt2_ds.config.errors import EXIT_DONE, exit_code_of, user_error
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.hosts.launcher import adopt_launcher_variables, world_size
from gpt2_ds.hosts.node_environment import load_node_environment


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speed, MFU and memory of a recipe on random tokens. Writes no file.",
        epilog="example: deepspeed launch/benchmark.py --recipe recipes/quickstart.yaml "
        "--template ds_configs/zero0.json --template ds_configs/zero1.json --plain-torch",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", type=Path, required=True, help="a file of recipes/")
    add("--template", type=Path, action="append", help="a file of ds_configs/; may be given again")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one value")
    add("--steps", type=int, default=20, help="timed steps of each template, in turn (20)")
    add("--warmup-steps", type=int, default=3, help="untimed steps before (3)")
    add("--plain-torch", action="store_true", help="also time it without DeepSpeed")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


def main() -> int:
    args = arguments()
    load_node_environment()
    adopt_launcher_variables()
    check_deepspeed()
    if args.plain_torch and world_size() > 1:
        raise user_error("--plain-torch", f"with {world_size()} ranks", "Start it with one rank.")
    if args.steps < 1 or args.warmup_steps < 0:
        raise user_error("--steps", "must be at least 1, --warmup-steps at least 0", "Give more.")
    plans = [
        resolve_run(args.recipe, world_size=world_size(), template_file=path, overrides=args.set)
        for path in args.template or [None]
    ]
    from gpt2_ds.parallel.process_group import join, leave
    from gpt2_ds.train.benchmark import benchmark  # torch and deepspeed: after the quick checks

    def measure() -> int:
        join()
        counts = {"steps": args.steps, "warmup_steps": args.warmup_steps}
        benchmark(plans, plain_torch=args.plain_torch, **counts)
        return EXIT_DONE

    leave(exit_code_of(measure))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
