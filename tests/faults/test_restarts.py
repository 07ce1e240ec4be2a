"""--restarts: a rank that dies is started again, and the numbers stay; and when it must not be."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import complete_checkpoints
from gpt2_ds.record.ledger import read_ledger
from tests.faults.jobs import Job, events_of, gone, job, length, losses_of, newest_step
from tests.faults.test_kills import SAVES
from tests.faults.test_signals import LONG, RARE

RESTARTS = ("--restarts", "2")


def killed_and_restarted(
    data: Path, folder: Path, victims: list[int], steps: int, template: str = "zero1"
) -> None:
    """Kill one rank after another in one job; compare it with one that nobody disturbed."""
    settings = (*SAVES, *length(steps))
    with job(folder / "unbroken", data, *settings, template=template) as unbroken:
        assert unbroken.wait(300) == [0, 0], unbroken.text()
    run = folder / "run"
    words = ("--restarts", str(len(victims)))
    with job(run, data, *settings, words=words, template=template, deepspeed=True) as started:
        for victim in victims:
            started.until_step(newest_step(run) + 6)
            os.kill(started.rank_processes()[victim], signal.SIGKILL)
            dead = started.text().count("restart ") + 1
            started.until(lambda dead=dead: started.text().count("restart ") >= dead)
        assert newest_step(run) < steps, "the run must not end before the last kill"
        (code,) = started.wait(300)
        text = started.text()
        gone(started)
    assert code == 0, text
    for number in range(1, len(victims) + 1):
        assert f"restart {number} of {len(victims)}: the last attempt " in text
    attempts = [f"attempt {n} of this job after a failure" for n in range(1, len(victims) + 1)]
    assert [line["reason"] for line in events_of(run, "restart")] == attempts
    assert len(events_of(run, "resume")) == len(victims)  # each from a checkpoint, not from zero
    assert losses_of(run) == losses_of(folder / "unbroken")
    assert len(losses_of(run)) > steps


@pytest.mark.heavy
def test_a_killed_rank_is_restarted_and_the_numbers_stay(data: Path, tmp_path: Path) -> None:
    killed_and_restarted(data, tmp_path, victims=[1], steps=60)


@pytest.mark.faults
@pytest.mark.parametrize("template", ["zero0", "zero1", "zero2", "zero3"])
def test_ranks_killed_in_turn(template: str, data: Path, tmp_path: Path) -> None:
    killed_and_restarted(data, tmp_path, [0, 1, 0], steps=200, template=template)


@pytest.mark.heavy
def test_a_wrong_dataset_is_not_restarted(data: Path, tmp_path: Path) -> None:
    missing = f"data.path={tmp_path / 'missing'}"  # found wrong below the supervisor
    with job(tmp_path / "run", data, missing, words=RESTARTS, ranks=1) as started:
        assert started.wait(60) == [2], started.text()
        assert started.text().count(f"error: {tmp_path / 'missing'}") == 1
        assert "restart" not in started.text()
        assert "Traceback" not in started.text()


def ended_and_saved(
    data: Path,
    run: Path,
    words: tuple[str, ...],
    victim: Callable[[Job], int],
    number: signal.Signals,
) -> tuple[int, str]:
    """Send a signal; exit code and the reason of the stop, once all have saved and are gone."""
    with job(run, data, *LONG, *RARE, words=words, deepspeed=True) as started:
        started.until_step(3)
        os.kill(victim(started), number)
        (code,) = started.wait(60)
        gone(started)
        text = started.text()
    last = read_ledger(run / "ledger.jsonl")[-1]
    assert last["event"] == "stop", text
    newest, _ = complete_checkpoints(run)[0]
    assert newest.name == f"step_{last['step']:08d}"
    assert last["step"] == newest_step(run)  # nothing that was done is lost
    assert not re.search(r"restart \d", text)
    assert len(events_of(run, "start")) == 1
    assert events_of(run, "restart") == events_of(run, "resume") == []
    assert "Traceback" not in text
    return code, last["reason"]


@pytest.mark.heavy
def test_a_stopped_job_is_not_restarted(data: Path, tmp_path: Path) -> None:
    code, reason = ended_and_saved(
        data, tmp_path / "run", RESTARTS, lambda one: one.supervisors()[0], signal.SIGTERM
    )
    assert code == 75
    assert reason == "rank 0: SIGTERM"


@pytest.mark.faults
def test_a_stopped_launcher_is_not_restarted(data: Path, tmp_path: Path) -> None:
    _, reason = ended_and_saved(
        data, tmp_path / "run", RESTARTS, Job.launcher_process, signal.SIGTERM
    )
    assert "SIGTERM" in reason


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(RESTARTS, marks=pytest.mark.heavy),
        pytest.param((), marks=pytest.mark.faults),
    ],
)
def test_a_killed_launcher_leaves_no_rank(
    words: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    # The exit code is DeepSpeed's own: 0.19.8 ends with 0 when a signal killed its launcher.
    _, reason = ended_and_saved(data, tmp_path / "run", words, Job.launcher_process, signal.SIGKILL)
    assert "the launcher is gone" in reason
