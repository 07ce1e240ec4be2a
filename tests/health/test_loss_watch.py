from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.recipe import HealthSection
from gpt2_ds.health.loss_watch import LossWatch, logged_steps


def quiet_losses(n: int) -> list[float]:
    """A mean of 3 and a deviation of 0.1."""
    draw = random.Random(7)
    return [3.0 + draw.choice([-0.1, 0.1]) for _ in range(n)]


def watched(losses: list[float], sigmas: float = 8.0) -> tuple[LossWatch, list[int]]:
    """A watch that saw the losses, and the steps that it called spikes."""
    watch = LossWatch(HealthSection(loss_spike_sigmas=sigmas))
    return watch, [s for s, loss in enumerate(losses, start=1) if watch.observe(s, loss, True)]


def test_a_spike_is_one_by_the_last_100_losses() -> None:
    losses = [100.0] * 30 + quiet_losses(100)  # the first ones are forgotten
    bound = np.mean(losses[-100:]) + 8 * np.std(losses[-100:])
    watch, _ = watched(losses)
    assert watch.observe(131, bound - 1e-6, True) == []
    watch, _ = watched(losses)
    (sentence,) = watch.observe(131, bound + 1e-6, True)
    assert sentence == (
        f"step 131: the loss {bound:.4f} is a spike: the last 100 had a mean of "
        f"{np.mean(losses[-100:]):.4f} and a standard deviation of {np.std(losses[-100:]):.4f}"
    )


@pytest.mark.parametrize("known, is_spike", [(19, False), (20, True)])
def test_it_waits_until_it_knows_20(known: int, is_spike: bool) -> None:
    watch, spikes = watched(quiet_losses(known))
    assert spikes == []
    assert bool(watch.observe(known + 1, 9.0, True)) == is_spike


def test_a_spike_does_not_hide_the_next_one() -> None:
    _, spikes = watched([*quiet_losses(50), 9.0, 3.0, 9.0, 9.0, *quiet_losses(20), 9.0])
    assert spikes == [51, 53, 54, 75]


def test_a_new_level_is_spoken_of_20_times_and_no_more() -> None:
    level = [loss + 6 for loss in quiet_losses(60)]
    _, spikes = watched([*quiet_losses(50), *level, 20.0])
    assert spikes == [*range(51, 71), 111]


def test_spikes_with_pauses_are_no_level() -> None:
    _, spikes = watched([*quiet_losses(50), *([9.0] * 19 + [3.0]) * 3])
    assert len(spikes) == 57


def test_zero_sigmas_switch_it_off() -> None:
    assert watched([*quiet_losses(50), 1e9], sigmas=0.0)[1] == []


def test_a_falling_loss_is_no_spike() -> None:
    assert watched([10 * 0.99**i for i in range(300)])[1] == []


def test_the_same_loss_again_is_no_spike() -> None:
    assert watched([0.1] * 50)[1] == []


def test_skipped_steps_are_no_losses() -> None:
    losses = quiet_losses(25)
    plain, _ = watched(losses)
    watch = LossWatch(HealthSection())
    for step, loss in enumerate(losses, start=1):
        watch.observe(2 * step, loss, True)
        assert watch.observe(2 * step + 1, math.inf, False) == []
    plain_words, words = plain.observe(70, 9.0, True), watch.observe(70, 9.0, True)
    assert words == plain_words != []


def test_skipped_steps_in_a_row_end_the_run() -> None:
    watch = LossWatch(HealthSection(max_skipped_updates=3))
    for step, applied in enumerate([False, False, True, False, False, True, True], start=1):
        watch.observe(step, 3.0 if applied else math.nan, applied)
    watch.observe(8, math.nan, False)
    watch.observe(9, math.nan, False)
    with pytest.raises(RunError) as ended:
        watch.observe(10, math.nan, False)
    assert str(ended.value) == (
        "steps 8 to 10: 3 updates in a row were skipped, for a loss or gradient that is not finite "
        "(the last loss: nan). The last checkpoint is untouched. Lower optimizer.lr; or look at "
        "the samples with `python launch/inspect_data.py where --recipe RECIPE --step 8` and skip "
        "them with `--skip-samples a:b` (ledger.jsonl has their numbers)."
    )


def test_one_may_be_enough() -> None:
    watch = LossWatch(HealthSection(max_skipped_updates=1))
    with pytest.raises(RunError, match=r"^step 4: 1 update was skipped, .* \(the last loss: inf"):
        watch.observe(4, math.inf, False)


def lines_of(*values: tuple[int, float | None, int]) -> str:
    names = ("step", "loss", "skipped_updates")
    return "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in values)


def test_a_job_that_resumes_knows_what_the_one_before_saw(tmp_path: Path) -> None:
    """A spike in the first step is one; steps skipped in a row are counted on."""
    losses = [*quiet_losses(40), 9.0, *quiet_losses(10)]
    unbroken, _ = watched(losses)
    validation = '{"step": 30, "validation_loss": 4.0}\n'
    content = lines_of(*((step, loss, 0) for step, loss in enumerate(losses, start=1)))
    (tmp_path / "metrics.jsonl").write_text(content + validation + '{"step": 52, "lo')
    again = LossWatch(HealthSection(loss_spike_sigmas=8.0), logged_steps(tmp_path))
    assert again.observe(52, 9.0, True) == unbroken.observe(52, 9.0, True) != []

    content += lines_of((52, None, 1), (53, None, 2))
    (tmp_path / "metrics.jsonl").write_text(content)
    again = LossWatch(HealthSection(max_skipped_updates=3), logged_steps(tmp_path))
    with pytest.raises(RunError, match=r"^steps 52 to 54: 3 updates in a row were skipped"):
        again.observe(54, math.nan, False)
    again = LossWatch(HealthSection(max_skipped_updates=2), logged_steps(tmp_path))
    assert again.observe(54, 3.0, True) == []


def test_of_steps_that_are_not_all_logged_what_is_sure_is_taken(tmp_path: Path) -> None:
    lines = ((10, 5.0, 0), (20, None, 10), (30, 4.0, 13))
    (tmp_path / "metrics.jsonl").write_text(lines_of(*lines))
    found = logged_steps(tmp_path)
    assert [logged.step for logged in found] == [10, *range(11, 21), 30]
    assert [logged.applied for logged in found] == [True, *[False] * 10, True]
    assert logged_steps(tmp_path / "none") == []
