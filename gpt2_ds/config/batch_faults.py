"""What is wrong with the batch and its ramp, for a number of ranks."""

from __future__ import annotations

from math import gcd

from gpt2_ds.config.batches import ramp_is_sound, step_ends_near, steps_until
from gpt2_ds.config.errors import Fault
from gpt2_ds.config.numbers import counted, divisors, few, near_multiples
from gpt2_ds.config.recipe import BatchSection
from gpt2_ds.config.recipe_file import LoadedRecipe


def batch_faults(loaded: LoadedRecipe, world_size: int) -> list[Fault]:
    """What is wrong with `batch`, for a number of processes."""
    tokens, size = loaded.recipe.batch.global_batch_tokens, loaded.recipe.batch.micro_batch_size
    seq_length = loaded.recipe.data.seq_length
    ranks = counted(world_size, "rank")
    if what := _uneven(tokens, seq_length, world_size):
        unit = seq_length * size
        if tokens % unit:
            nearest = near_multiples(tokens, unit * world_size)
            fix = f"Nearest for {ranks} of {counted(size, 'sequence')}: {nearest}."
        else:
            fix = f"World sizes that work: {few(divisors(tokens // unit))}."
        return [Fault(loaded.where("batch.global_batch_tokens"), what, fix)]
    per_rank = tokens // (seq_length * world_size)
    if per_rank % size:
        return [
            Fault(
                loaded.where("batch.micro_batch_size"),
                f"{size} does not divide the {counted(per_rank, 'sequence')} of each of {ranks} "
                f"({tokens} tokens / {seq_length} / {world_size})",
                f"Values that work: {few(divisors(per_rank))}.",
            )
        ]
    return _ramp_faults(loaded, world_size)


def _uneven(tokens: int, seq_length: int, world_size: int) -> str:
    """Why a batch of so many tokens cannot be divided among the ranks; "": it can."""
    if tokens % seq_length:
        return f"{tokens} is not a multiple of data.seq_length {seq_length}"
    if tokens % (seq_length * world_size):
        sequences = f"{tokens} tokens are {tokens // seq_length} sequences of {seq_length}"
        return f"{sequences}, which {counted(world_size, 'rank')} do not divide"
    return ""


def _ramp_faults(loaded: LoadedRecipe, world_size: int) -> list[Fault]:
    """What is wrong with the ramp, where the full batch is right."""
    batch, seq_length = loaded.recipe.batch, loaded.recipe.data.seq_length
    ramp, full = batch.ramp, batch.global_batch_tokens
    if ramp is None:
        return []
    faults = []
    for key, tokens in (("start", ramp.start_tokens), ("increment", ramp.increment_tokens)):
        where = loaded.where(f"batch.ramp.{key}_tokens")
        if what := _uneven(tokens, seq_length, world_size):
            common = gcd(ramp.start_tokens, ramp.increment_tokens)
            fitting = divisors(common // seq_length) if common % seq_length == 0 else []
            fix = f"Nearest: {near_multiples(tokens, seq_length * world_size)}."
            if fitting:
                fix += f" Or world sizes that work: {few(fitting)}."
            faults.append(Fault(where, what, fix))
    if ramp.start_tokens >= full:
        fix = "Set it lower, or remove batch.ramp."
        what = f"{ramp.start_tokens} is not below batch.global_batch_tokens {full}"
        faults.append(Fault(loaded.where("batch.ramp.start_tokens"), what, fix))
    elif not ramp_is_sound(batch):
        what = (
            f"no whole number of {ramp.increment_tokens} leads from {ramp.start_tokens} to "
            f"batch.global_batch_tokens {full}"
        )
        fitting = [
            tokens
            for tokens in divisors(full - ramp.start_tokens)
            if tokens % (seq_length * world_size) == 0
        ]
        fix = f"Values that work: {few(fitting)}." if fitting else "Change one of the three."
        faults.append(Fault(loaded.where("batch.ramp.increment_tokens"), what, fix))
    if ramp.length_tokens > loaded.recipe.schedule.total_tokens:
        what = f"{ramp.length_tokens} is above schedule.total_tokens"
        fix = f"Set it to at most {loaded.recipe.schedule.total_tokens}."
        faults.append(Fault(loaded.where("batch.ramp.length_tokens"), what, fix))
    return faults


def between_steps(batch: BatchSection, tokens: int, least: int = 1) -> tuple[str, str] | None:
    """What is wrong with a length at which no step ends, and the fix.

    Args:
        batch: of the recipe.
        tokens: seen since the start.
        least: the lowest length that the fix names.

    Returns:
        None where a step ends there, or where the ramp is wrong.
    """
    if not ramp_is_sound(batch) or steps_until(batch, tokens) is not None:
        return None
    after = ", after the ramp," if batch.ramp else ""
    full = f"batch.global_batch_tokens {batch.global_batch_tokens}"
    ends = step_ends_near(batch, tokens, least)
    return (
        f"{tokens} is{after} not a multiple of {full}",
        f"Nearest: {' or '.join(map(str, ends))}.",
    )
