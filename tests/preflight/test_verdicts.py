"""The table that a person reads, and the exit code."""

from __future__ import annotations

from gpt2_ds.preflight.verdicts import exit_code, failed, ok, table, warning

GOOD = ok("Python", "3.11.7")
POOR = warning("free disk", "1 GiB for 2 GiB", "Make room.")
BAD = failed("torch", "b (rank 1) has 1; a (rank 0) has 2", "Install one.")


def test_the_table() -> None:
    assert table([GOOD, POOR, BAD]).splitlines() == [
        "check      verdict  found",
        "Python     ok       3.11.7",
        "free disk  warning  1 GiB for 2 GiB",
        "torch      failed   b (rank 1) has 1; a (rank 0) has 2",
        "",
        "warning: free disk: Make room.",
        "failed: torch: Install one.",
    ]
    assert table([GOOD]).splitlines() == ["check   verdict  found", "Python  ok       3.11.7"]


def test_only_a_failure_fails() -> None:
    assert exit_code([GOOD]) == 0
    assert exit_code([GOOD, POOR]) == 0
    assert exit_code([GOOD, BAD, POOR]) == 1


def test_a_check_as_the_mistake_of_a_user() -> None:
    said = "torch: b (rank 1) has 1; a (rank 0) has 2. Install one."
    assert str(BAD.fault()) == said
