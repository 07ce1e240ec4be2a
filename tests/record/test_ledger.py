from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.record.ledger import Ledger, read_ledger


def test_a_line_says_when_where_and_why(tmp_path: Path) -> None:
    before = time.time()
    Ledger(tmp_path).write("start", step=0, tokens_seen=0, reason="the command was given")
    Ledger(tmp_path).write(
        "skip_update", step=3, tokens_seen=768, reason="NaN", loss=float("nan"), samples=[16, 24]
    )
    raw = (tmp_path / "ledger.jsonl").read_text()
    assert raw.endswith("\n")
    first, second = [json.loads(line) for line in raw.splitlines()]
    written = datetime.fromisoformat(first.pop("time"))
    assert written.tzinfo == UTC
    assert written.microsecond == 0
    assert before - 1 <= written.timestamp() <= time.time()
    assert first == {
        "event": "start",
        "step": 0,
        "tokens_seen": 0,
        "reason": "the command was given",
        "host": platform.node(),
        "pid": os.getpid(),
    }
    assert (second["loss"], second["samples"], second["tokens_seen"]) == ("nan", [16, 24], 768)
    assert read_ledger(tmp_path / "ledger.jsonl")[1] == second


@pytest.mark.parametrize("torn", [b'{"event": "sta', b"{", b'{"event": "start"}', b"\xff\xfe"])
def test_the_end_of_a_torn_line_is_not_joined_to_the_next(torn: bytes, tmp_path: Path) -> None:
    ledger, path = Ledger(tmp_path), tmp_path / "ledger.jsonl"
    ledger.write("start", step=0, tokens_seen=0, reason="a")
    with path.open("ab") as file:
        file.write(torn)
    ledger.write("resume", step=2, tokens_seen=512, reason="b")
    ledger.write("done", step=8, tokens_seen=2048, reason="c")
    events = [line["event"] for line in read_ledger(path) if "step" in line]
    assert events == ["start", "resume", "done"]
    assert path.read_bytes().count(b"\n") == 4
    assert b"\n\n" not in path.read_bytes()


def test_rank_0_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    Ledger(tmp_path).write("start", step=0, tokens_seen=0, reason="a")
    assert list(tmp_path.iterdir()) == []
    assert read_ledger(tmp_path / "ledger.jsonl") == []


def test_a_line_that_is_json_and_no_event_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('7\n\n[]\n{"event": "done"}\n')
    assert read_ledger(path) == [{"event": "done"}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError) as failed:
        Ledger(tmp_path).write("start", step=0, tokens_seen=0, reason="a")
    assert str(failed.value) == (
        f"{tmp_path}/ledger.jsonl: cannot be written (No space left on device). Make room on this "
        "disk, then give the same command again."
    )


WRITER = """
import sys
from pathlib import Path
from gpt2_ds.record.ledger import Ledger
for step in range(100):
    Ledger(Path(sys.argv[1])).write("resume", step=step, tokens_seen=0, reason="x" * 500)
"""


def test_lines_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    """A restart may begin while the process before it still writes.

    One may see the other's line half written, and close it: an empty line then, which is no harm.
    """
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    steps = [line["step"] for line in read_ledger(tmp_path / "ledger.jsonl")]
    assert sorted(steps) == sorted([*range(100), *range(100)])
