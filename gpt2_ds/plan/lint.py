"""`plan.py lint`: what is known to be wrong, or of no use, in a recipe with its template."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from gpt2_ds.config.deepspeed_release import check_deepspeed, installed_deepspeed
from gpt2_ds.config.errors import EXIT_DONE, EXIT_WRONG_INPUT, faults_of
from gpt2_ds.config.numbers import counted
from gpt2_ds.config.run_plan import examine
from gpt2_ds.plan.cost.gpus import read_gpus
from gpt2_ds.plan.show import add_ranks, add_recipe_arguments


def add_arguments(parser: ArgumentParser) -> None:
    """Of `lint`."""
    add_recipe_arguments(parser)
    add_ranks(parser)


def lint_recipe(args: Namespace) -> int:
    """Print every finding; exit code 2 when one of them is an error.

    Raises:
        UserError: the recipe cannot be read; --gpus is not a number of them.
    """
    ranks, _ = read_gpus(args.gpus)
    found = examine(args.recipe, world_size=ranks, template_file=args.template, overrides=args.set)
    faults, findings = [*faults_of(check_deepspeed), *found.faults], found.findings
    for fault in faults:
        print(f"error: {fault}")
    for finding in findings:
        print(finding)
    if not faults and not findings:
        release = installed_deepspeed() or "(none is installed)"
        what = f"{found.loaded.file} with {found.template_file} on {counted(ranks, 'rank')}"
        print(f"nothing found: {what}, DeepSpeed {release}")
    wrong = faults or any(finding.severity == "error" for finding in findings)
    return EXIT_WRONG_INPUT if wrong else EXIT_DONE
