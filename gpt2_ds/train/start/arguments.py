"""What can be typed after `launch/train.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.order.skipped import Ranges
from gpt2_ds.record.skipped_samples import parse_ranges


@dataclass(frozen=True)
class StartOptions:
    """How a job begins, where it does not simply resume.

    Args:
        strict: a damaged checkpoint is an error; otherwise the one before it is taken.
        skip_samples: ranges [first, end) of samples to skip from now on.
    """

    strict: bool = False
    skip_samples: Ranges = ()


RESUME = StartOptions()
"""Simply resume."""


def start_options(args: argparse.Namespace, steps: int) -> StartOptions:
    """What was typed of how the job begins.

    Args:
        args: from `parse`.
        steps: of the run.

    Raises:
        UserError: the run does not have the step to replay; samples to skip are not a range.
    """
    ranges = parse_ranges(args.skip_samples)
    if args.replay is not None and not 1 <= args.replay <= steps:
        fix = f"It has steps 1 to {steps}."
        raise user_error(f"--replay {args.replay}", "is not a step of this run", fix)
    return StartOptions(args.strict, ranges)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What was typed.

    Raises:
        UserError: --hostfile without --dry-run.
    """
    parser = argparse.ArgumentParser(
        description="Train a recipe. The same command, given again, resumes the run.",
        epilog="example: deepspeed launch/train.py --recipe recipes/quickstart.yaml "
        "--set optimizer.lr=1e-3 --run-dir runs/lr_1e-3. Exit codes: 0 done, 1 the run failed, 2 "
        "the input is wrong, 75 stopped by a signal and saved: give the same command again.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", type=Path, required=True, help="what to train: a file of recipes/")
    add("--template", type=Path, help="how to shard it: a file of ds_configs/ (the recipe's own)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one value")
    add("--run-dir", type=Path, help="where the run is written (runs/<recipe name>)")
    add("--twin", action="store_true", help="a copy of the recipe: 1M parameters, 50 steps")
    add("--max-steps", type=int, metavar="N", help="stop after step N; same schedule")
    add("--expect-ranks", type=int, metavar="N", help="refuse another number of ranks")
    add("--restarts", type=int, default=0, metavar="N", help="restart N times after a failure")
    add("--strict", action="store_true", help="a damaged checkpoint is an error (use an older)")
    add(
        "--skip-samples",
        action="append",
        default=[],
        metavar="A:B",
        help="skip samples A up to B, not B itself, of the order of training from now on",
    )
    add("--replay", type=int, metavar="STEP", help="take one past step again, and change nothing")
    add("--dry-run", action="store_true", help="print all values and what follows; stop")
    add("--hostfile", type=Path, help="with --dry-run: print each node's command and ranks, too")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parsed = parser.parse_args(words)
    if parsed.hostfile is not None and not parsed.dry_run:
        raise user_error(
            f"--hostfile {parsed.hostfile}",
            "is an option of deepspeed, but was given to launch/train.py",
            f"Type deepspeed --hostfile {parsed.hostfile} launch/train.py ...",
        )
    return parsed
