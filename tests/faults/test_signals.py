"""A signal to any process of a job: all ranks save, and the job can resume."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import complete_checkpoints, damaged_files
from gpt2_ds.record.ledger import read_ledger
from tests.faults.conftest import Row
from tests.faults.jobs import Job, gone, job, losses_of, newest_step

LONG = ("schedule.total_tokens=2560000", "schedule.decay_tokens=2560000")
RARE = ("evaluation.interval_steps=1000", "checkpoint.interval_steps=1000")
# Where a job is nearly all of its time.
DOING = {
    "training": RARE,
    "validation": (RARE[1], "evaluation.interval_steps=1", "evaluation.tokens=32000"),
    "saving": (RARE[0], "checkpoint.interval_steps=1"),
    "saving at once": (RARE[0], "checkpoint.interval_steps=1", "checkpoint.write_behind=false"),
}
# What the `deepspeed` command itself ends with: a signal to it or to its launcher ends that process
# in its own way (DeepSpeed 0.19.8); the ranks have saved and ended with 75 all the same.
VICTIMS = ("deepspeed", "launcher", "rank 0", "rank 1")


def victim_of(started: Job, name: str) -> int:
    if name == "deepspeed":
        return started.processes[0].pid
    if name == "launcher":
        return started.launcher_process()
    return started.rank_processes()[int(name[-1])]


@contextmanager
def frozen(started: Job, ranks: list[int], *, in_a_save: bool) -> Iterator[None]:
    """Stop all ranks, where asked for while a checkpoint is half written; let them continue."""
    checkpoints = started.run_dir / "checkpoints"
    end = time.monotonic() + 60
    while True:
        assert time.monotonic() < end, started.text()
        if in_a_save and not list(checkpoints.glob("*.tmp")):
            continue  # without a pause: a save is short
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        time.sleep(0.05)
        if not in_a_save or list(checkpoints.glob("*.tmp")):
            break
        for rank in ranks:
            os.kill(rank, signal.SIGCONT)
    yield
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)


def exit_codes(run: Path) -> list[str]:
    """How each rank ended, from its log: a launcher that is gone tells nobody."""
    logs = sorted((run / "logs").glob("rank_*.log"))
    return [log.read_text().splitlines()[-1].rpartition("ends with exit code ")[2] for log in logs]


def stopped_and_saved(
    data: Path, run: Path, victim: str, name: str, doing: str, *, twice: bool = False
) -> float:
    """Send a signal; seconds until no process of the job is left."""
    settings = (*LONG, *DOING[doing])
    if twice:  # the save at the end takes long enough to send another into it
        settings += ("model.n_embd=256",)
    with job(run, data, *settings, deepspeed=True) as started:
        started.until_step(3)
        ranks, number = started.rank_processes(), getattr(signal, name)
        target = victim_of(started, victim)
        with frozen(started, ranks, in_a_save=doing.startswith("saving")):
            before = newest_step(run)
            began = time.monotonic()
            os.kill(target, number)
        if twice:
            with frozen(started, ranks, in_a_save=True):
                for rank in ranks:
                    os.kill(rank, number)
        (code,) = started.wait(60)
        gone(started, 60)
        seconds = time.monotonic() - began
        text = started.text()
    assert exit_codes(run) == ["75", "75"], text
    if victim.startswith("rank"):
        assert code == 75, text
    last = read_ledger(run / "ledger.jsonl")[-1]
    assert last["event"] == "stop", text
    if victim.startswith("rank"):
        asked = name
        # The step that was being taken, and no more than one: it may have agreed on it already.
        assert before <= last["step"] <= before + 2
    else:  # DeepSpeed's launcher passes SIGINT and SIGTERM on as SIGTERM, and dies of SIGUSR1
        passed_on = victim == "launcher" and name != "SIGUSR1"
        asked = "SIGTERM" if passed_on else "the launcher is gone"
    assert asked in last["reason"] or (twice and name in last["reason"]), last
    newest, manifest = complete_checkpoints(run)[0]
    assert newest.name == f"step_{last['step']:08d}"
    assert damaged_files(newest, manifest) == []
    assert last["step"] == newest_step(run)  # nothing that was done is lost
    assert not list((run / "checkpoints").glob("*.tmp"))
    # The `deepspeed` command itself ends with Python's KeyboardInterrupt.
    assert text.count("Traceback") == ((victim, name) == ("deepspeed", "SIGINT"))
    assert seconds < 30
    if twice:
        end = last["step"] + 2
        with job(run, data, *settings, words=("--max-steps", str(end))) as again:
            assert again.wait(60) == [0, 0], again.text()
        assert f"resuming from step {last['step']}" in again.text()
        assert newest_step(run) == end
    return seconds


@pytest.mark.heavy
@pytest.mark.parametrize(
    "victim, name, doing",
    [
        ("deepspeed", "SIGTERM", "training"),
        ("launcher", "SIGINT", "validation"),
        ("rank 1", "SIGUSR1", "saving"),
    ],
)
def test_a_signal_and_another_while_it_saves(
    victim: str, name: str, doing: str, data: Path, tmp_path: Path
) -> None:
    stopped_and_saved(data, tmp_path / "run", victim, name, doing, twice=True)


@pytest.mark.faults
@pytest.mark.parametrize("doing", list(DOING))
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("victim", VICTIMS)
def test_every_signal(
    victim: str, name: str, doing: str, data: Path, tmp_path: Path, row: Row
) -> None:
    row.seconds(stopped_and_saved(data, tmp_path / "run", victim, name, doing))


@pytest.mark.heavy
def test_stopped_and_gone_on_is_as_unbroken(data: Path, tmp_path: Path) -> None:
    settings = ("schedule.total_tokens=25600", "schedule.decay_tokens=25600")
    run = tmp_path / "run"
    with job(run, data, *settings) as started:
        started.until_step(20)
        os.kill(started.rank_processes()[0], signal.SIGTERM)
        assert started.wait(60) == [75, 75], started.text()
    with job(run, data, *settings) as again:
        assert again.wait(120) == [0, 0], again.text()
    with job(tmp_path / "unbroken", data, *settings) as unbroken:
        assert unbroken.wait(120) == [0, 0], unbroken.text()
    assert losses_of(run) == losses_of(tmp_path / "unbroken")
