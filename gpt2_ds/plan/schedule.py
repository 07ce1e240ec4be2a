"""`plan.py schedule`: batch and learning rate by tokens and steps, as the run will take them."""

from __future__ import annotations

import csv
import io
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from gpt2_ds.config.errors import EXIT_DONE, user_error
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.plan.learning_rate import learning_rate
from gpt2_ds.plan.picture import curve, page
from gpt2_ds.plan.printing import write_file
from gpt2_ds.plan.show import add_planned_arguments, planned

_POINTS = 500  # of a curve, about


@dataclass(frozen=True)
class Row:
    """One optimizer step.

    Args:
        step: 1 is the first.
        tokens_seen: after it.
        global_batch_tokens: of it.
        learning_rate: of it.
    """

    step: int
    tokens_seen: int
    global_batch_tokens: int
    learning_rate: float


def _row(plan: RunPlan, step: int) -> Row:
    """What a step of the run is.

    Args:
        plan: the run.
        step: 1 to plan.derived.steps.
    """
    seq_length, batches = plan.recipe.data.seq_length, plan.derived.batches
    tokens_seen = batches.samples_after(step) * seq_length
    return Row(
        step=step,
        tokens_seen=tokens_seen,
        global_batch_tokens=batches.of_step(step).global_batch_size * seq_length,
        learning_rate=learning_rate(plan.recipe.schedule, plan.recipe.optimizer.lr, tokens_seen),
    )


def marks(plan: RunPlan) -> dict[int, list[str]]:
    """What begins or ends at which step, in words."""
    found: dict[int, list[str]] = {1: ["first step"]}
    for level in plan.derived.batches.levels[1:]:
        words = "full batch" if level == plan.derived.batches.levels[-1] else "larger batch"
        found.setdefault(level.first_step, []).append(words)
    lengths = plan.recipe.schedule.model_dump()
    for key, words in (
        ("warmup_tokens", "warm-up ends"),
        ("stable_tokens", "decay begins"),
        ("decay_tokens", "decay ends"),
    ):
        if lengths.get(key):
            found.setdefault(_step_at(plan, lengths[key]), []).append(words)
    found.setdefault(plan.derived.steps, []).append("last step")
    return found


def _step_at(plan: RunPlan, tokens: int) -> int:
    """The step that brings the run to so many tokens."""
    first, last = 1, plan.derived.steps
    while first < last:
        middle = (first + last) // 2
        enough = _row(plan, middle).tokens_seen >= tokens
        first, last = (first, middle) if enough else (middle + 1, last)
    return first


def add_arguments(parser: ArgumentParser) -> None:
    """Of `schedule`."""
    add_planned_arguments(parser)
    add = parser.add_argument
    add("--every", type=int, metavar="STEPS", help="a row every so many steps (about 20 rows)")
    add("--csv", type=Path, metavar="FILE", help="write a file, a row every --every steps (1)")
    add("--html", type=Path, metavar="FILE", help="write the two curves as a page to look at")


def schedule(args: Namespace) -> int:
    """Print the table, or write the file.

    Raises:
        UserError: --every is below 1; the file cannot be written; or as `resolve_run`.
    """
    if args.every is not None and args.every < 1:
        raise user_error(f"--every {args.every}", "is below 1", "Give at least 1.")
    plan = planned(args)
    if args.csv is not None:
        write_file("--csv", args.csv, _as_csv(plan, args.every or 1))
        print(f"{args.csv}: {plan.derived.steps:,} steps")
        return EXIT_DONE
    if args.html is not None:
        write_file("--html", args.html, page(f"{plan.loaded.name}: schedule", curves(plan)))
        print(f"{args.html}: {plan.derived.steps:,} steps")
        return EXIT_DONE
    noted = marks(plan)
    print(f"{'step':>10} {'tokens seen':>20} {'batch tokens':>14} {'learning rate':>14}")
    for row in _rows(plan, args.every or max(1, plan.derived.steps // 20), set(noted)):
        words = ", ".join(noted.get(row.step, []))
        line = f"{row.step:>10,} {row.tokens_seen:>20,} {row.global_batch_tokens:>14,}"
        print(f"{line} {row.learning_rate:>14.6g}  {words}".rstrip())
    return EXIT_DONE


def _rows(plan: RunPlan, every: int, also: set[int]) -> Iterator[Row]:
    """Every so many steps, the last one, and some more."""
    steps = {*range(every, plan.derived.steps + 1, every), plan.derived.steps, *also}
    return (_row(plan, step) for step in sorted(steps))


def curves(plan: RunPlan) -> list[str]:
    """Learning rate and batch over the tokens of a run, to look at; SVG elements."""
    rows = list(_rows(plan, max(1, plan.derived.steps // _POINTS), set(marks(plan))))
    rates = [(row.tokens_seen / 1e9, row.learning_rate) for row in rows]
    batches = [
        (tokens / 1e9, float(row.global_batch_tokens))
        for row in rows  # a stair: each step's batch from its first token to its last
        for tokens in (row.tokens_seen - row.global_batch_tokens, row.tokens_seen)
    ]
    across = "billion tokens seen"
    return [
        curve("Learning rate", rates, across=across, up="learning rate"),
        curve("Batch", batches, across=across, up="tokens of an optimizer step"),
    ]


def _as_csv(plan: RunPlan, every: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in _rows(plan, every, {1}))
    return text.getvalue()
