"""What ranks print: where it goes, and what the terminal shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_ds.record.rank_log import log_path
from tests.conftest import REPOSITORY

_RANK = """
import os, sys
from pathlib import Path
from gpt2_ds.record.rank_log import keep_log, log_end
if sys.argv[3] == "closed terminal":
    r, w = os.pipe(); os.close(r); os.dup2(w, 1)
keep_log(Path(sys.argv[1]), int(sys.argv[2]))
print("step 1", "loss 2.0")
print("half", end=" "); print("a line", flush=True)
print("warning: slow", file=sys.stderr)
print("error: no such", "thing", file=sys.stderr)
os.system("echo from a library")
sys.stdout.flush(); sys.stderr.flush()
print("the end", file=sys.stderr, flush=True)
log_end(3)
os._exit(3)
"""
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d rank (\d+) \S+: ")
LINES = ["step 1 loss 2.0", "half a line", "warning: slow", "error: no such thing", "the end"]
END = "ends with exit code 3"


def run(folder: Path, rank: int, how: str = "") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-W", "error", "-c", _RANK, str(folder), str(rank), how]
    return subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )


def logged(folder: Path, rank: int) -> list[str]:
    """Lines without their stamps; of those that have one, the rank was right."""
    lines = log_path(folder, rank).read_text().splitlines()
    assert {found[1] for line in lines if (found := STAMP.match(line))} == {str(rank)}
    return [STAMP.sub("", line) for line in lines]


def test_rank_0_prints_to_the_terminal_and_into_the_log(tmp_path: Path) -> None:
    done = run(tmp_path, 0)
    assert done.returncode == 3
    assert sorted(done.stdout.splitlines()) == sorted([*LINES[:2], "from a library"])
    assert done.stderr.splitlines() == LINES[2:]
    assert sorted(logged(tmp_path, 0)) == sorted([*LINES, END])


def test_of_other_ranks_the_terminal_shows_errors(tmp_path: Path) -> None:
    done = run(tmp_path, 12)
    assert done.returncode == 3
    assert (done.stdout, done.stderr) == ("", "error: no such thing\n")
    assert log_path(tmp_path, 12).name == "rank_00012.log"
    assert sorted(logged(tmp_path, 12)) == sorted([*LINES, "from a library", END])


@pytest.mark.parametrize("rank", [0, 3])
def test_a_closed_terminal_stops_nobody(tmp_path: Path, rank: int) -> None:
    done = run(tmp_path, rank, "closed terminal")
    assert done.returncode == 3, done.stderr
    assert [line for line in logged(tmp_path, rank) if line in LINES] == LINES


def test_a_second_job_goes_on_in_the_same_file(tmp_path: Path) -> None:
    run(tmp_path, 1)
    run(tmp_path, 1)
    assert logged(tmp_path, 1).count("the end") == 2


def test_where_no_file_can_be_made_all_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    done = run(tmp_path, 1)
    assert done.returncode == 3
    assert "half a line" in done.stdout
    assert "warning: slow" in done.stderr
