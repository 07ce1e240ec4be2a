"""`plan.py lint`: what is known to be wrong, or of no use, in a recipe with its template."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from gpt2_ds.config.deepspeed_release import check_deepspeed, installed_deepspeed
from gpt2_ds.config.derive import derive
from gpt2_ds.config.errors import EXIT_DONE, EXIT_WRONG_INPUT, UserError, faults_of, user_error
from gpt2_ds.config.lint.findings import Finding
from gpt2_ds.config.lint.rules import lint
from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.config.template_file import load_template
from gpt2_ds.plan.show import add_ranks, add_recipe_arguments


def add_arguments(parser: ArgumentParser) -> None:
    """Of `lint`."""
    add_recipe_arguments(parser)
    add_ranks(parser)


def lint_recipe(args: Namespace) -> int:
    """Print every finding; exit code 2 when one of them is an error.

    Raises:
        UserError: the recipe cannot be read; --gpus is below 1.
    """
    if args.gpus < 1:
        raise user_error(f"--gpus {args.gpus}", "is below 1", "Give at least 1.")
    loaded = load_recipe(args.recipe, args.set)
    file = args.template or Path(loaded.recipe.template)
    faults = faults_of(check_deepspeed, lambda: derive(loaded, args.gpus))
    findings: list[Finding] = []
    try:
        findings = lint(loaded, load_template(file), str(file), args.gpus)
    except UserError as error:
        faults.extend(error.faults)
    for fault in faults:
        print(f"error: {fault}")
    for finding in findings:
        print(finding)
    if not faults and not findings:
        release = installed_deepspeed() or "(none is installed)"
        print(f"nothing found: {loaded.file} with {file} on {args.gpus} ranks, DeepSpeed {release}")
    wrong = faults or any(finding.severity == "error" for finding in findings)
    return EXIT_WRONG_INPUT if wrong else EXIT_DONE
