"""What is wrong with the batch and its ramp, for a number of ranks."""

from __future__ import annotations

from math import gcd

from gpt2_ds.config.batches import ramp_is_sound
from gpt2_ds.config.errors import Fault
from gpt2_ds.config.numbers import counted, divisors, few, near_multiples
from gpt2_ds.config.recipe_file import LoadedRecipe


def batch_faults(loaded: LoadedRecipe, world_size: int) -> list[Fault]:
    """What is wrong with `batch`, for a number of processes."""
    tokens, size = loaded.recipe.batch.global_batch_tokens, loaded.recipe.batch.micro_batch_size
    seq_length = loaded.recipe.data.seq_length
    nearest = near_multiples(tokens, seq_length * size * world_size)
    ranks = counted(world_size, "rank")
    if tokens % seq_length:
        return [
            Fault(
                loaded.where("batch.global_batch_tokens"),
                f"{tokens} is not a multiple of data.seq_length {seq_length}",
                f"Nearest for {ranks} of {counted(size, 'sequence')}: {nearest}.",
            )
        ]
    global_batch_size = tokens // seq_length
    if global_batch_size % world_size:
        fitting = divisors(global_batch_size // size) if global_batch_size % size == 0 else []
        return [
            Fault(
                loaded.where("batch.global_batch_tokens"),
                f"{tokens} tokens are {global_batch_size} sequences of {seq_length}, which "
                f"{ranks} do not divide",
                f"World sizes that work: {few(fitting)}."
                if fitting
                else f"Nearest for {ranks} of {counted(size, 'sequence')}: {nearest}.",
            )
        ]
    per_rank = global_batch_size // world_size
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


def _ramp_faults(loaded: LoadedRecipe, world_size: int) -> list[Fault]:
    """What is wrong with the ramp, where the full batch is right."""
    batch, seq_length = loaded.recipe.batch, loaded.recipe.data.seq_length
    ramp, full = batch.ramp, batch.global_batch_tokens
    if ramp is None:
        return []
    faults = []
    for key, tokens in (("start", ramp.start_tokens), ("increment", ramp.increment_tokens)):
        where = loaded.where(f"batch.ramp.{key}_tokens")
        if tokens % seq_length:
            what = f"{tokens} is not a multiple of data.seq_length {seq_length}"
            fix = f"Nearest: {near_multiples(tokens, seq_length * world_size)}."
            faults.append(Fault(where, what, fix))
        elif tokens % (seq_length * world_size):
            what = (
                f"{tokens} tokens are {tokens // seq_length} sequences of {seq_length}, which "
                f"{world_size} ranks do not divide"
            )
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
