"""Watch the loss: name a spike, and end a run that no longer learns."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpt2_ds.config.errors import RunError, on_all_ranks
from gpt2_ds.config.recipe import HealthSection
from gpt2_ds.record.metrics_file import read_metrics

WINDOW_STEPS = 100
FEWEST_STEPS = 20
_LOGGED_STEPS = 2 * WINDOW_STEPS
_LOGGED_BYTES = 4 << 20  # lines of these steps, were each 20 KB long


@dataclass(frozen=True)
class LoggedStep:
    """A step of the jobs before, as `LossWatch.observe` would take it in."""

    step: int
    loss: float
    applied: bool


class LossWatch:
    """Knows the losses of the last steps; the same on all ranks when they observe the same.

    Args:
        health: the recipe's section.
        before: what the jobs before came to, in order; the same on all ranks.
    """

    def __init__(self, health: HealthSection, before: Iterable[LoggedStep] = ()) -> None:
        self._health = health
        self._losses: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._spikes: list[float] = []
        self._skipped: list[int] = []
        for logged in before:
            with suppress(RunError):  # the limit was different then
                self.observe(logged.step, logged.loss, logged.applied)

    def observe(self, step: int, loss: float, applied: bool) -> list[str]:
        """Take in one optimizer step.

        Args:
            step: its number.
            loss: nats per token, the mean of all ranks.
            applied: the update was not skipped for a fault; what fp16's loss scale skips is not
                one.

        Returns:
            A sentence where the loss is a spike: more than health.loss_spike_sigmas standard
            deviations above the mean of the last 100 losses, once 20 are known. A spike is not
            counted among them; 20 spikes in a row are the new level.

        Raises:
            RunError: health.max_skipped_updates updates in a row were skipped.
        """
        if not applied:
            self._skipped.append(step)
            if len(self._skipped) >= self._health.max_skipped_updates:
                raise on_all_ranks(RunError(_gave_up(self._skipped, loss)))
            return []
        self._skipped.clear()
        sentence = self._spike(step, loss)
        if sentence is None:
            self._spikes.clear()
            self._losses.append(loss)
            return []
        self._spikes.append(loss)
        if len(self._spikes) == FEWEST_STEPS:
            self._losses = deque(self._spikes, maxlen=WINDOW_STEPS)
            self._spikes.clear()
        return [sentence]

    def _spike(self, step: int, loss: float) -> str | None:
        sigmas = self._health.loss_spike_sigmas
        if sigmas == 0 or len(self._losses) < FEWEST_STEPS:
            return None
        mean = statistics.mean(self._losses)  # exact: equal losses are not spikes
        deviation = statistics.pstdev(self._losses, mean)
        if loss <= mean + sigmas * deviation:
            return None
        return (
            f"step {step}: the loss {loss:.4f} is a spike: the last {len(self._losses)} had a mean "
            f"of {mean:.4f} and a standard deviation of {deviation:.4f}"
        )


def logged_steps(run_dir: Path) -> list[LoggedStep]:
    """What metrics.jsonl says of the last steps; every one where logging.interval_steps is 1."""
    found: deque[LoggedStep] = deque(maxlen=_LOGGED_STEPS)
    last_step, last_skipped = 0, 0.0
    for step, values in read_metrics(run_dir, "skipped_updates", last_bytes=_LOGGED_BYTES):
        loss, skipped = values.get("loss"), values["skipped_updates"]
        if skipped is None:
            continue
        if skipped - last_skipped == step - last_step:  # all of those in between were skipped
            first = max(last_step, step - _LOGGED_STEPS) + 1
            found.extend(LoggedStep(s, math.nan, False) for s in range(first, step + 1))
        elif loss is not None:
            found.append(LoggedStep(step, loss, True))
        last_step, last_skipped = step, skipped
    return list(found)


def _gave_up(steps: list[int], loss: float) -> str:
    which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    n = "1 update was" if len(steps) == 1 else f"{len(steps)} updates in a row were"
    return (
        f"{which}: {n} skipped, for a loss or gradient that is not finite (the last loss: {loss}). "
        "The last checkpoint is untouched. Lower optimizer.lr; or look at the samples with "
        f"`python launch/inspect_data.py where --recipe RECIPE --step {steps[0]}` and skip them "
        "with `--skip-samples a:b` (ledger.jsonl has their numbers)."
    )
