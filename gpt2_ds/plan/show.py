"""`plan.py show`: a recipe with all that follows from it."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from gpt2_ds.config.errors import EXIT_DONE
from gpt2_ds.config.recipe_file import flatten
from gpt2_ds.config.run_plan import RunPlan, default_run_dir, resolve_run
from gpt2_ds.plan.cost.gpus import read_gpus
from gpt2_ds.plan.printing import table


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """The words that name a recipe; the same for every command, and as in launch/train.py."""
    add = parser.add_argument
    add("--recipe", type=Path, required=True, help="file of recipes/")
    add("--template", type=Path, metavar="FILE", help="file of ds_configs/ (the recipe's)")
    text = "another value for a key of the recipe; may be given several times"
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help=text)


def add_ranks(parser: ArgumentParser) -> None:
    """The word that says how many ranks: a number, or as `fit` takes it."""
    text = "ranks of the job: 8, or 8xH100-80 (1)"
    parser.add_argument("--gpus", default="1", metavar="N[xGPU]", help=text)


def add_planned_arguments(parser: ArgumentParser) -> None:
    """The words that `planned` reads."""
    add_recipe_arguments(parser)
    add_ranks(parser)
    parser.add_argument("--twin", action="store_true", help="of the recipe's small twin")


def planned(args: Namespace) -> RunPlan:
    """The run that the words name.

    Raises:
        UserError: as `read_gpus` and `resolve_run`.
    """
    ranks, _ = read_gpus(args.gpus)
    return resolve_run(
        args.recipe,
        world_size=ranks,
        template_file=args.template,
        overrides=args.set,
        twin=args.twin,
    )


def show(args: Namespace) -> int:
    """Print what `launch/train.py --dry-run` prints."""
    print(describe(planned(args)))
    return EXIT_DONE


def describe(plan: RunPlan) -> str:
    """What `--dry-run` prints: every value with its origin, then what follows from them."""
    rows = [
        (key, json.dumps(value), plan.loaded.origin(key))
        for key, value in flatten(plan.recipe.model_dump() | {"template": plan.template_file})
    ]
    if plan.template_file != plan.recipe.template:
        rows[0] = (*rows[0][:2], "--template")
    rows += [
        (key, f"{value:,}" if isinstance(value, int) else str(value), "derived")
        for key, value in asdict(plan.derived).items()
        if key != "batches"
    ]
    if len(plan.derived.batches.levels) > 1:
        *smaller, full = plan.derived.batches.levels
        words = f"{len(smaller)} smaller ones, the full one from step {full.first_step:,}"
        rows.append(("batches", words, "derived"))
    default = default_run_dir(plan.loaded)
    origin = "from the recipe's name" if plan.run_dir == default else "--run-dir"
    rows += [("run_dir", str(plan.run_dir), origin)]
    config = json.dumps(plan.deepspeed(cpu_adam=False), indent=2)
    found = "".join(f"\n{warning}" for warning in plan.warnings)
    return f"{table(rows)}\n\ndeepspeed.initialize gets:\n{config}{found}"
