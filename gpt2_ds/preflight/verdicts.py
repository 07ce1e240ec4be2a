"""What a check says, and the table that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpt2_ds.config.errors import EXIT_DONE, EXIT_RUN_FAILED, Fault
from gpt2_ds.plan import printing


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Args:
        name: what was looked at.
        verdict: how it ended.
        found: what there was, with the values; a clause.
        fix: what to do about it, a full sentence; empty when all is well.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""

    def fault(self) -> Fault:
        """The same, as what a run is refused with."""
        return Fault(self.name, self.found, self.fix)


def ok(name: str, found: str) -> Check:
    """A check that found all well."""
    return Check(name, Verdict.OK, found)


def warning(name: str, found: str, fix: str) -> Check:
    """A check that found what a run can live with."""
    return Check(name, Verdict.WARNING, found, fix)


def failed(name: str, found: str, fix: str) -> Check:
    """A check that found what a run cannot live with."""
    return Check(name, Verdict.FAILED, found, fix)


def table(checks: Sequence[Check]) -> str:
    """The checks as a table, and below it a line with the fix of each that is not ok."""
    rows = [("check", "verdict", "found"), *((c.name, c.verdict.value, c.found) for c in checks)]
    fixes = [f"{c.verdict}: {c.name}: {c.fix}" for c in checks if c.fix]
    return "\n".join([printing.table(rows), *([""] if fixes else []), *fixes])


def exit_code(checks: Sequence[Check]) -> int:
    """1 when a check failed, 0 otherwise."""
    bad = any(check.verdict is Verdict.FAILED for check in checks)
    return EXIT_RUN_FAILED if bad else EXIT_DONE
