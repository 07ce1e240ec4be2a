"""The quickstart, killed once every ten save intervals: how much of the time was training."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.record.ledger import read_ledger
from tests.conftest import REPOSITORY
from tests.faults.conftest import Row
from tests.faults.jobs import job, newest_step
from tests.small_run import SETTINGS, metrics_of

STEPS = 3000  # the quickstart is made longer, so that it lasts some minutes
INTERVAL_STEPS = 100  # a kill every 1,000 steps


def the_recipe_as_it_is() -> list[str]:
    """The quickstart's own values again for all that a small job changes."""
    recipe = yaml.safe_load((REPOSITORY / "recipes/quickstart.yaml").read_text())
    own = []
    for setting in SETTINGS:
        section, _, key = setting.partition("=")[0].partition(".")
        if key in recipe[section] and key != "prepare":
            own.append(f"{section}.{key}={recipe[section][key]}")
    return own


def useful_seconds(run: Path) -> float:
    """Seconds in steps that count and in their validations.

    Of steps: each line's mean, times the steps since the line before.
    """
    useful, before = 0.0, 0
    for step, seconds in metrics_of(run, "step", "step_seconds"):
        useful += (step - before) * seconds
        before = step
    return useful + sum(seconds for (seconds,) in metrics_of(run, "validation_seconds"))


@pytest.mark.faults
def test_goodput_with_a_kill_every_ten_saves(tmp_path: Path, row: Row) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    prepare(
        Request(inputs=["python-stdlib"], out=data, tokenizer="bytes", validation_fraction=0.05)
    )
    settings = (
        *the_recipe_as_it_is(),
        f"schedule.total_tokens={STEPS * 2048}",
        f"schedule.decay_tokens={STEPS * 2048}",
        f"checkpoint.interval_steps={INTERVAL_STEPS}",
    )
    kills, restarts = 0, []
    began = time.monotonic()
    while newest_step(run) < STEPS:
        started_at = time.monotonic()
        goal = (kills + 1) * 10 * INTERVAL_STEPS + INTERVAL_STEPS // 2
        with job(run, data, *settings, template="zero0") as started:
            # Not the metrics: they still hold steps that will be done again.
            started.until(lambda: "\nstep " in started.text(), 120)
            if kills:
                restarts.append(time.monotonic() - started_at)
            if goal > STEPS:
                assert started.wait(1200) == [0, 0], started.text()
                break
            started.until_step(goal, 600)
            started.kill()
            kills += 1
    total = time.monotonic() - began
    useful = useful_seconds(run)
    row.figure(
        f"{kills} kills: {useful / total:.3f}, validations counted as useful ({useful:.0f} of "
        f"{total:.0f} s)"
    )
    row.figure(f"restart to first step {', '.join(f'{seconds:.1f}' for seconds in restarts)} s")
    assert kills == 2
    assert starts_of(run)[1:] == [1000, 2000]
    assert max(restarts) < 60
    assert useful / total >= 0.90


def starts_of(run: Path) -> list[int]:
    """The step from which each job began."""
    events = read_ledger(run / "ledger.jsonl")
    return [line["step"] for line in events if line["event"] in ("start", "resume")]
