"""The commands of `launch/plan.py`: each has its words and its work in a module of its own."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from gpt2_ds.plan import lint, schedule, show
from gpt2_ds.plan.cost import fit
from gpt2_ds.plan.papers import diff, list_recipes


@dataclass(frozen=True)
class Command:
    """One of them.

    Args:
        text: what --help says in a line.
        add_arguments: adds its words to its parser.
        do: does it, and returns the exit code.
    """

    text: str
    add_arguments: Callable[[ArgumentParser], None]
    do: Callable[[Namespace], int]


COMMANDS = {
    "list": Command(
        "all recipes: size, tokens, work, GPU-days",
        list_recipes.add_arguments,
        list_recipes.list_recipes,
    ),
    "show": Command(
        "every value of a recipe, and where it is from", show.add_planned_arguments, show.show
    ),
    "schedule": Command(
        "batch and learning rate by tokens and steps", schedule.add_arguments, schedule.schedule
    ),
    "fit": Command(
        "memory, time and cost of every template, and what to type", fit.add_arguments, fit.fit
    ),
    "lint": Command(
        "what is known to be wrong, or of no use, in a recipe with a template",
        lint.add_arguments,
        lint.lint_recipe,
    ),
    "diff": Command("where a recipe leaves its paper, and why", diff.add_arguments, diff.diff),
}
"""By name, in the order of --help."""
