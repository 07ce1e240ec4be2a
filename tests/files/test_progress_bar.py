"""What is shown of long work; with the counts of a preparation: tests/data/preparation."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from gpt2_ds.files.progress_bar import ProgressBar
from tests.conftest import REPOSITORY

WORK = """
import threading
from gpt2_ds.files.progress_bar import ProgressBar

with ProgressBar(4_000_000, title="a.bin: ") as bar:
    bar.advance(1_000_000)
    assert threading.active_count() == 1  # workers may be forked
    bar.finish()
with ProgressBar(None) as bar:
    bar.advance(5_000_000)
try:
    with ProgressBar(4_000_000) as bar:
        bar.advance(2_000_000)
        raise ValueError
except ValueError:
    print("no more")
"""
SPEED = r"in [\d.]+ s \([\d,.]+ MB/s\)"


def test_a_terminal_shows_a_bar_and_is_clean_at_the_end() -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-W", "error", "-c", WORK]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # at its end
            while part := os.read(ours, 10_000):
                shown += part
        assert process.wait(timeout=60) == 0
    os.close(ours)
    text = shown.decode().replace("\r\n", "\n")
    lines = [re.sub(r".*\r", "", line).strip() for line in text.split("\n")]
    assert lines[1:] == ["no more", ""]
    assert re.fullmatch(rf"a\.bin: 1\.0 of 4\.0 MB {SPEED}", lines[0])
    assert re.search(rf"\r 25%\|█+.*\| a\.bin: 1\.0 of 4\.0 MB {SPEED}, 0 s left", text)
    assert re.search(rf"\r5\.0 MB {SPEED}", text)  # no part of what is not known
    assert re.search(rf"\r 50%\|█+.*\| 2\.0 of 4\.0 MB {SPEED}", text)


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    with ProgressBar(100_000_000, done_bytes=20_000_000) as bar:
        for clock.now in (110.0, 129.0, 130.0, 140.0, 159.9, 160.0):
            bar.advance(10_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "50.0 of 100.0 MB in 30.0 s (1.0 MB/s), 50 s left",
        "80.0 of 100.0 MB in 60.0 s (1.0 MB/s), 20 s left",
    ]
    bar.finish()
    assert capsys.readouterr().err == "80.0 of 100.0 MB in 60.0 s (1.0 MB/s)\n"
