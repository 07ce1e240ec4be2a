"""A clock that jumps: nothing hangs, nothing is lost, and the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.record.ledger import read_ledger
from tests.faults.jobs import curve_of, job
from tests.small_run import metrics_of

# Set by SHIFT; and once the job has said that it began, a day to and fro from call to call.
JUMPS = """
import itertools, os, time

if "SHIFT" in os.environ:
    count, true_one, ledger = itertools.count(), time.time, os.environ["LEDGER"]
    size = lambda: os.path.getsize(ledger) if os.path.exists(ledger) else 0
    before, shift = size(), float(os.environ["SHIFT"])
    jump = lambda: 86400 * (next(count) % 3 - 1) if size() > before else 0
    time.time = lambda: true_one() + shift + jump()
"""


@pytest.mark.heavy
def test_a_clock_that_jumps(data: Path, tmp_path: Path) -> None:
    """Within a job, and back by a week between two."""
    (tmp_path / "jumps").mkdir()
    (tmp_path / "jumps/sitecustomize.py").write_text(JUMPS)
    run, settings = tmp_path / "run", ("health.timeout_seconds=30",)
    environment = {"PYTHONPATH": str(tmp_path / "jumps"), "LEDGER": str(run / "ledger.jsonl")}
    with job(tmp_path / "unbroken", data, *settings) as unbroken:
        assert unbroken.wait() == [0, 0], unbroken.text()
    for shift, words in (("0", ("--max-steps", "5")), ("-604800", ())):
        shifted = {**environment, "SHIFT": shift}
        with job(run, data, *settings, words=words, environment=shifted) as started:
            assert started.wait() == [0, 0], started.text()
    numbers = ("step", "loss", "gradient_norm", "learning_rate", "tokens_seen")
    assert metrics_of(run, *numbers) == metrics_of(tmp_path / "unbroken", *numbers)
    assert curve_of(run, "train/loss") == pytest.approx(dict(metrics_of(run, "step", "loss")))
    for (seconds,) in metrics_of(run, "step_seconds"):
        assert 0 < seconds < 60
    events = [event["event"] for event in read_ledger(run / "ledger.jsonl")]
    assert events == ["start", "resume", "done"]
