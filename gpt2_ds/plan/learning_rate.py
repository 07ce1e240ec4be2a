"""The learning rate as a function of tokens seen."""

from __future__ import annotations

import math

from gpt2_ds.config.recipe import AnySchedule, ConstantSchedule, CosineSchedule


def learning_rate(schedule: AnySchedule, peak_lr: float, tokens_seen: int) -> float:
    """The rate of the update that brings the run to `tokens_seen`.

    Counting the update's own tokens makes the first rate of a warm-up greater than zero, and the
    one that ends at warmup_tokens (decay_tokens) exactly the peak (min_lr).

    Args:
        schedule: the recipe's.
        peak_lr: optimizer.lr.
        tokens_seen: tokens, after the update; at least 1.
    """
    if tokens_seen < schedule.warmup_tokens:
        return peak_lr * tokens_seen / schedule.warmup_tokens
    if isinstance(schedule, ConstantSchedule):
        return peak_lr
    if isinstance(schedule, CosineSchedule):
        progress = _progress(tokens_seen, schedule.warmup_tokens, schedule.decay_tokens)
        share = (1 + math.cos(math.pi * progress)) / 2
    else:
        share = 1 - _progress(tokens_seen, schedule.stable_tokens, schedule.decay_tokens)
    if share == 1:
        return peak_lr  # the sum below may miss it by a rounding
    return schedule.min_lr + (peak_lr - schedule.min_lr) * share


def _progress(tokens_seen: int, start: int, end: int) -> float:
    """How much of start..end is behind, 0 to 1.

    >>> [_progress(t, 10, 20) for t in (5, 10, 15, 20, 99)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if tokens_seen >= end:
        return 1.0
    if tokens_seen <= start:  # start may be end
        return 0.0
    return (tokens_seen - start) / (end - start)
