"""The one way this project tells a user that what they gave is wrong, or may go wrong."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

EXIT_DONE = 0
EXIT_RUN_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_PREEMPTED = 75

_OTHER_RANKS_WAIT_SECONDS = 4.0

AnyError = TypeVar("AnyError", "UserError", "RunError")


@dataclass(frozen=True)
class Fault:
    """One mistake, in the form *file: key: what, with the values. The fix.*

    Args:
        where: the file, then the key if there is one, joined by ": "
            (`recipes/x.yaml: model.n_head`).
        what: what is wrong, with the values.
        fix: what to type or change instead; a full sentence.
    """

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what.rstrip('.')}. {self.fix}"


class UserError(Exception):
    """The user's input is wrong; the run has not started. Exit code 2, no traceback.

    Args:
        faults: every mistake found, so that all can be corrected at once.
    """

    said_by_rank_0 = False

    def __init__(self, *faults: Fault) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class RunError(Exception):
    """The run itself failed in a way that is understood. Exit code 1, no traceback."""

    said_by_rank_0 = False


def on_all_ranks(error: AnyError) -> AnyError:
    """Mark an error that every rank raises at the same place: rank 0 alone prints it."""
    error.said_by_rank_0 = True
    return error


def user_error(where: str, what: str, fix: str) -> UserError:
    """A `UserError` with a single fault."""
    return UserError(Fault(where, what, fix))


def faults_of(*checks: Callable[[], object]) -> list[Fault]:
    """Every mistake that some checks find; each of them raises `UserError` or returns."""
    faults: list[Fault] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            faults.extend(error.faults)
    return faults


def warn(text: str) -> None:
    """Say on standard error, and so in this rank's log, what may go wrong and ends nothing.

    Args:
        text: the warning, without that word.
    """
    sys.stderr.write(f"warning: {text}\n")  # one write: other threads may warn, too
    sys.stderr.flush()


def nearest(name: str, known: Iterable[str]) -> str:
    """The clause that names the known word closest to `name`, or lists all of them.

    >>> nearest("n_haed", ["n_head", "n_layer"])
    'Did you mean n_head?'
    >>> nearest("zzz", ["b", "a"])
    'Known here: a, b.'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."


def exit_code_of(command: Callable[[], int]) -> int:
    """Run one command of `launch/`; print a user's mistake without a traceback.

    Under a launcher every rank finds the same mistake, and rank 0 prints it. A launcher that sees
    rank 0 end kills the others, on its own machine; one that still lives after a while has a
    mistake of its own (a folder that its machine lacks), and prints it, but not one that is
    `on_all_ranks`.

    Args:
        command: does the work and returns the exit code.

    Returns:
        The command's own code, 2 after a `UserError`, 1 after a `RunError`.
    """
    try:
        return command()
    except (UserError, RunError) as error:
        return print_error(error)


def print_error(error: UserError | RunError) -> int:
    """Print what went wrong, a line each, as `exit_code_of` says; the exit code for it."""
    lines = [str(error)] if isinstance(error, RunError) else [*map(str, error.faults)]
    code = EXIT_RUN_FAILED if isinstance(error, RunError) else EXIT_WRONG_INPUT
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_OTHER_RANKS_WAIT_SECONDS)
        if error.said_by_rank_0:
            return code
    who = "" if rank == "0" else f" (rank {rank})"
    for line in lines:
        print(f"error{who}: {line}", file=sys.stderr, flush=True)
    return code
