from __future__ import annotations

import re
import sys
import time

import pytest

from gpt2_ds.data.preparation.progress import DocumentBar


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = DocumentBar(10**6)
    clock.now = 29.0
    progress.add(3, 290_000, 7)
    assert capsys.readouterr().err == ""
    clock.now = 30.0
    progress.add(1, 10_000, 1)
    shown = "4 documents, 0.3 MB in 30.0 s (0.0 MB/s), 8 tokens"
    assert capsys.readouterr().err == f"{shown}, 70 s left\n"
    clock.now = 59.0
    progress.add(1, 10_000, 1)
    assert capsys.readouterr().err == ""
    progress.finish()
    assert capsys.readouterr().err == "5 documents, 0.3 MB in 59.0 s (0.0 MB/s), 9 tokens\n"


def test_a_line_that_is_rewritten(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = DocumentBar(10**6)
    assert capsys.readouterr().err.startswith("\r  0%|")
    clock.now = 1.0
    progress.add(3, 4_000_000, 7, n_input_bytes=500_000)  # of packed text
    shown = "3 documents, 4.0 MB in 1.0 s (4.0 MB/s), 7 tokens"
    bar, _, words = capsys.readouterr().err.partition("| ")
    assert re.fullmatch("\r 50%[|]█+[▏▎▍▌▋▊▉]? +", bar)
    assert words == f"{shown}, 1 s left"
    clock.now = 1.4
    progress.add(1, 1, 1)
    assert capsys.readouterr().err == ""
    progress.finish()
    cleared, _, last = capsys.readouterr().err.rpartition("\r")
    assert cleared.strip() == ""  # spaces over the bar
    assert last == "4 documents, 4.0 MB in 1.4 s (2.9 MB/s), 8 tokens\n"


def test_what_was_done_before_takes_no_time(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = DocumentBar(1000, done_bytes=800)
    clock.now = 40.0
    progress.add(1, 100, 1)
    assert capsys.readouterr().err.endswith(", 40 s left\n")


@pytest.mark.parametrize("total, input_bytes", [(None, 5), (10, 0)])
def test_no_end_in_sight(
    clock: Clock, capsys: pytest.CaptureFixture[str], total: int | None, input_bytes: int
) -> None:
    progress = DocumentBar(total)
    clock.now = 40.0
    progress.add(1, 100, 1, input_bytes)
    assert capsys.readouterr().err.endswith(" 1 token\n")
