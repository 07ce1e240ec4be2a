"""How many sequences each optimizer step takes: the same for all, or growing with `batch.ramp`."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import gcd

from gpt2_ds.config.recipe import BatchSection


@dataclass(frozen=True)
class Stretch:
    """Steps in a row with one batch size; the same for any world size.

    Args:
        batch_tokens: tokens of each of its optimizer steps.
        first_step: its first; 1 is the run's first.
        tokens_before: seen before it.
    """

    batch_tokens: int
    first_step: int
    tokens_before: int


def stretches(batch: BatchSection) -> tuple[Stretch, ...]:
    """The stretches of `batch` with its ramp, the last one without end.

    The ramp's sizes are start, start + increment, ... below global_batch_tokens, each for an equal
    share of length_tokens, in whole steps: a size ends with the first step that reaches its share.

    Source: Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix B ("linearly from a small
    value (32k tokens) to the full value over the first 4-12 billion tokens"), in stairs as in
    Megatron-LM's --rampup-batch-size.
    """
    if batch.ramp is None:
        return (Stretch(batch.global_batch_tokens, 1, 0),)
    sizes = range(batch.ramp.start_tokens, batch.global_batch_tokens, batch.ramp.increment_tokens)
    found, step, tokens = [], 1, 0
    for number, size in enumerate(sizes, start=1):
        found.append(Stretch(size, step, tokens))
        until = number * batch.ramp.length_tokens // len(sizes)
        steps = max(1, -(-(until - tokens) // size))
        step, tokens = step + steps, tokens + steps * size
    return (*found, Stretch(batch.global_batch_tokens, step, tokens))


def ramp_is_sound(batch: BatchSection) -> bool:
    """Whether there is no ramp, or one that leads to the full batch."""
    ramp, full = batch.ramp, batch.global_batch_tokens
    return ramp is None or (
        ramp.start_tokens < full and (full - ramp.start_tokens) % ramp.increment_tokens == 0
    )


def _stretch_at(batch: BatchSection, tokens: int) -> Stretch:
    """The stretch of the step that follows after so many tokens seen."""
    return next(part for part in reversed(stretches(batch)) if part.tokens_before <= tokens)


def steps_until(batch: BatchSection, tokens: int) -> int | None:
    """The number of steps that end at exactly so many tokens seen; None where no step does."""
    here = _stretch_at(batch, tokens)
    steps, rest = divmod(tokens - here.tokens_before, here.batch_tokens)
    return None if rest else here.first_step - 1 + steps


def step_ends_near(batch: BatchSection, tokens: int, least: int = 1) -> list[int]:
    """Tokens seen at the ends of the steps before and after `tokens`, none below `least`."""
    here, there = _stretch_at(batch, tokens), _stretch_at(batch, max(tokens + 1, least) - 1)
    steps_before = (tokens - here.tokens_before) // here.batch_tokens
    before = here.tokens_before + steps_before * here.batch_tokens
    steps_after = -(-(max(tokens + 1, least) - there.tokens_before) // there.batch_tokens)
    after = there.tokens_before + steps_after * there.batch_tokens
    return [before, after] if before >= least else [after]


@dataclass(frozen=True)
class Level:
    """How a batch of one size is divided among the ranks.

    Args:
        first_step: the first step of this size; 1 is the run's first.
        samples_before: sequences of all steps before it.
        global_batch_size: sequences of one optimizer step, over all ranks.
        micro_batch_size: sequences of one forward pass of one rank.
        gradient_accumulation_steps: micro-steps of one optimizer step, per rank.
    """

    first_step: int
    samples_before: int
    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int


@dataclass(frozen=True)
class Batches:
    """The batches of a run on a number of ranks.

    Args:
        levels: in the order of their steps; the last is the recipe's full batch, without end.
    """

    levels: tuple[Level, ...]

    @classmethod
    def share(cls, batch: BatchSection, seq_length: int, world_size: int) -> Batches:
        """Split evenly; sizes must be checked before (`derive`).

        A step below the full batch may be too small for the recipe's micro-batches. It takes the
        largest that divides both.
        """
        levels = []
        for stretch in stretches(batch):
            size = stretch.batch_tokens // seq_length
            micro = gcd(size // world_size, batch.micro_batch_size)
            levels.append(
                Level(
                    first_step=stretch.first_step,
                    samples_before=stretch.tokens_before // seq_length,
                    global_batch_size=size,
                    micro_batch_size=micro,
                    gradient_accumulation_steps=size // world_size // micro,
                )
            )
        return cls(tuple(levels))

    def of_step(self, step: int) -> Level:
        """The level of an optimizer step; 1 is the first.

        >>> small, full = Level(1, 0, 4, 2, 1), Level(3, 8, 8, 2, 2)
        >>> [Batches((small, full)).of_step(step).global_batch_size for step in (1, 2, 3, 9)]
        [4, 4, 8, 8]
        """
        return self.levels[bisect_right([level.first_step for level in self.levels], step) - 1]

    def samples_after(self, step: int) -> int:
        """Sequences of all steps up to this one; 0 after step 0.

        >>> small, full = Level(1, 0, 4, 2, 1), Level(3, 8, 8, 2, 2)
        >>> [Batches((small, full)).samples_after(step) for step in (0, 1, 2, 3, 4)]
        [0, 4, 8, 16, 24]
        """
        level = self.of_step(max(step, 1))
        return level.samples_before + (step + 1 - level.first_step) * level.global_batch_size
