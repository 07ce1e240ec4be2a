"""One dataset that all jobs here read; and the table of results of the long matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_run import small_dataset

ROWS = {
    "kills (-9) of all ranks at random moments around saves, 2 ranks, 600 steps at each of ZeRO 0 "
    "to 3": ["test_fifty_kills_and_fifty_resumes"],
    "a rank stopped in mid-save, and killed": ["test_one_rank_killed_while_it_saves"],
    "stopped and resumed after each of 20 steps, accumulation 1 and 4, ZeRO 0 to 3, with dropout": [
        "test_stopped_after_each_of_twenty_steps"
    ],
    "SIGTERM, SIGINT, SIGUSR1 to `deepspeed`, its launcher, rank 0, rank 1; in training, "
    "validation, saving behind the steps and at once": ["test_every_signal"],
    "kill -9 of one rank below `deepspeed`, ZeRO 0 to 3": ["test_every_killed_rank"],
    "SIGSTOP of one rank below `deepspeed`, ZeRO 0 to 3, timeout 8 s": ["test_every_stopped_rank"],
    "a rank that takes 0.2 s a step longer, reading, in the forward, in the backward, ZeRO 1 to 3; "
    "with steps of 1 s": ["test_a_slow_rank_is_named_at_every_stage"],
    "`--restarts`: ranks killed in turn, ZeRO 0 to 3; a launcher stopped or killed": [
        "test_ranks_killed_in_turn",
        "test_a_stopped_launcher_is_not_restarted",
        "test_a_killed_launcher_leaves_no_rank",
    ],
    "disks with 4 KiB to 768 KiB left": [
        "test_a_disk_that_fills_up",
        "test_a_disk_with_little_room",
    ],
    "bit flips over all files of a checkpoint, and each file cut, emptied, deleted": [
        "test_damage_is_found_and_the_checkpoint_before_taken"
    ],
    "the quickstart for 3,000 steps, killed every ten save intervals (1,000 steps): useful time of "
    "all": ["test_goodput_with_a_kill_every_ten_saves"],
}
"""What is done to a run, as BENCHMARKS.md names it; and the tests that do it."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


class Row:
    """What a test adds to its row of the table."""

    def __init__(self, note: Callable[[str, object], None]) -> None:
        self._note = note

    def seconds(self, seconds: float) -> None:
        """Until all was over; the table gives the least and the most."""
        self._note("seconds", seconds)

    def figure(self, text: str) -> None:
        """Something else that was measured or counted."""
        self._note("figure", text)


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    return Row(record_property)


def table(reports: list[pytest.TestReport]) -> list[str]:
    """The rows of the tests that ran, as BENCHMARKS.md has them."""
    of_test = defaultdict(list)
    for report in reports:
        of_test[report.nodeid.rpartition("::")[2].partition("[")[0]].append(report)
    lines = []
    for what, tests in ROWS.items():
        ran = [report for test in tests for report in of_test[test]]
        if not ran:
            continue
        found = [pair for report in ran for pair in report.user_properties]
        seconds = [float(str(value)) for name, value in found if name == "seconds"]
        parts = [f"{sum(report.passed for report in ran)} of {len(ran)} pass"]
        if seconds:
            parts.append(f"over after {min(seconds):.1f} to {max(seconds):.1f} s")
        parts += [str(value) for name, value in found if name == "figure"]
        lines.append(f"| {what} | {'; '.join(parts)} |")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table under everything else that pytest says."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" or report.failed
    ]
    if lines := table(reports):
        terminalreporter.section("what faults cost")
        for line in ("| what | result |", "|---|---|", *lines):
            terminalreporter.write_line(line)
