"""Everything killed at once, again and again: the numbers are those of an unbroken run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import complete_checkpoints
from tests.faults.conftest import Row
from tests.faults.jobs import curve_of, events_of, job, length, losses_of, newest_step
from tests.small_run import metrics_of

SAVES = ("checkpoint.interval_steps=2", "checkpoint.keep_best=false")


def killed_again_and_again(
    data: Path, folder: Path, template: str, kills: int, steps: int, seed: int
) -> dict[str, int]:
    """Kill `kills` times at random moments around saves; then let the run end.

    A kill before the first checkpoint is complete is one more: nothing resumes after it.
    """
    chance = random.Random(seed)
    settings = (*SAVES, *length(steps))
    with job(folder / "unbroken", data, *settings, template=template) as unbroken:
        assert unbroken.wait(600) == [0, 0], unbroken.text()
    broken, made, in_saves, to_come_back_to = folder / "broken", 0, 0, 0
    while to_come_back_to < kills:
        begun = newest_step(broken)
        with job(broken, data, *settings, template=template) as started:
            started.until_step(begun + 1)
            time.sleep(chance.uniform(0.0, 0.4))
            started.kill()
        in_saves += bool(list((broken / "checkpoints").glob("*.tmp")))  # one was half written
        to_come_back_to += bool(complete_checkpoints(broken))
        made += 1
    assert newest_step(broken) < steps, "the run must not end before the last kill"
    with job(broken, data, *settings, template=template) as last:
        assert last.wait(600) == [0, 0], last.text()
    assert losses_of(broken) == losses_of(folder / "unbroken")
    for name in ("loss", "validation_loss"):  # TensorBoard keeps 32 bits
        curve = curve_of(broken, f"{'train' if name == 'loss' else 'validation'}/loss")
        assert curve == pytest.approx(dict(metrics_of(broken, "step", name)), rel=1e-6)
    resumes = events_of(broken, "resume")
    assert len(resumes) == kills
    assert not list((broken / "checkpoints").glob("*.tmp"))
    return {"kills": made, "in saves": in_saves, "resumes": len(resumes)}


@pytest.mark.heavy
def test_killed_three_times(data: Path, tmp_path: Path) -> None:
    killed_again_and_again(data, tmp_path, "zero1", kills=3, steps=120, seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("template, seed", [("zero0", 1), ("zero1", 2), ("zero2", 3), ("zero3", 4)])
def test_fifty_kills_and_fifty_resumes(
    template: str, seed: int, data: Path, tmp_path: Path, row: Row
) -> None:
    kills = 13 if seed > 2 else 12  # fifty in all
    found = killed_again_and_again(data, tmp_path, template, kills, steps=600, seed=seed)
    row.figure(
        f"{template}: {found['kills']} kills, {found['in saves']} of them in a save, "
        f"{found['resumes']} resumes"
    )


@pytest.mark.faults
def test_one_rank_killed_while_it_saves(data: Path, tmp_path: Path) -> None:
    """Rank 1 is stopped in mid-save, and killed: the checkpoint is not there."""
    settings = (*length(200), "checkpoint.interval_steps=1", "checkpoint.write_behind=false")
    run = tmp_path / "run"
    with job(run, data, *settings) as started:
        started.until_step(3)
        _, victim = started.rank_processes()
        partial = run / "checkpoints"
        started.until(lambda: list(partial.glob("*.tmp")))
        os.kill(victim, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        codes = started.wait(30)
        assert codes[1] == -signal.SIGKILL
        assert codes[0] == 1, started.text()
        assert "error: rank 1 on" in started.text()
    with job(run, data, *settings) as again:
        assert again.wait(300) == [0, 0], again.text()
    with job(tmp_path / "unbroken", data, *settings) as unbroken:
        assert unbroken.wait(300) == [0, 0], unbroken.text()
    assert losses_of(run) == losses_of(tmp_path / "unbroken")
