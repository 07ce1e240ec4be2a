"""The table of the long matrix has the rows of BENCHMARKS.md, and all its tests are there."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from tests.conftest import REPOSITORY
from tests.faults.conftest import ROWS, table


def test_benchmarks_has_each_row() -> None:
    lines = (REPOSITORY / "BENCHMARKS.md").read_text().splitlines()
    named = {line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")}
    assert [what for what in ROWS if what not in named] == []


def test_each_test_of_a_row_is_there() -> None:
    files = (REPOSITORY / "tests/faults").glob("test_*.py")
    names = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert [test for tests in ROWS.values() for test in tests if test not in names] == []


def report(test: str, passed: bool, *properties: tuple[str, Any]) -> Any:
    nodeid = f"tests/faults/test_x.py::{test}[a-b]"
    return SimpleNamespace(nodeid=nodeid, passed=passed, user_properties=list(properties))


def test_a_row_counts_its_tests_and_gathers_their_figures() -> None:
    lines = table(
        [
            report("test_every_signal", True, ("seconds", 1.04)),
            report("test_every_signal", False),
            report("test_every_signal", True, ("seconds", 2.5), ("figure", "all well")),
            report("test_something_else", True, ("seconds", 9.0)),
        ]
    )
    (what,) = [what for what, tests in ROWS.items() if tests == ["test_every_signal"]]
    assert lines == [f"| {what} | 2 of 3 pass; over after 1.0 to 2.5 s; all well |"]
