"""What of a recipe must change for a number of ranks: the ramp and the run's end."""

from __future__ import annotations

from gpt2_ds.config.batches import step_ends_near, steps_until
from gpt2_ds.config.numbers import divisors, round_up
from gpt2_ds.config.recipe import BatchSection, Recipe
from gpt2_ds.config.recipe_file import LoadedRecipe


def suited_overrides(loaded: LoadedRecipe, ranks: int) -> list[str]:
    """The `--set` words with which a number of ranks divides every stair of the ramp.

    The stairs become the next size that the ranks divide, and the run ends with the nearest whole
    step. Another full batch would be another training, and what `--set` gave is meant as it is:
    nothing is suited then, and `derive` says what works.
    """
    words = _suited(loaded.recipe, ranks)
    changed = {word.partition("=")[0] for word in words}
    if "batch.ramp" in changed:
        changed |= {key for key in loaded.origins if key.startswith("batch.ramp.")}
    return [] if any(loaded.origin(key) == "--set" for key in changed) else words


def _suited(recipe: Recipe, ranks: int) -> list[str]:
    batch, unit = recipe.batch, recipe.data.seq_length * ranks
    ramp, full = batch.ramp, batch.global_batch_tokens
    if ramp is None or full % unit:
        return []
    if ramp.start_tokens % unit == 0 and ramp.increment_tokens % unit == 0:
        return []
    start = round_up(ramp.start_tokens, unit)
    if start >= full:
        suited = batch.model_copy(update={"ramp": None})
        return ["batch.ramp=null", *_end(recipe, suited)]
    stairs = [unit * stair for stair in divisors((full - start) // unit)]
    increment = min(stairs, key=lambda stair: abs(stair - ramp.increment_tokens))
    sizes = {"start_tokens": start, "increment_tokens": increment}
    suited = batch.model_copy(update={"ramp": ramp.model_copy(update=sizes)})
    words = [f"batch.ramp.{key}={value}" for key, value in sizes.items()]
    return [*words, *_end(recipe, suited)]


def _end(recipe: Recipe, batch: BatchSection) -> list[str]:
    """The word that ends the run with a whole step of this batch, where it does not."""
    total = recipe.schedule.total_tokens
    if steps_until(batch, total) is not None:
        return []
    marks = [recipe.schedule.warmup_tokens, getattr(recipe.schedule, "decay_tokens", 1)]
    ends = step_ends_near(batch, total, max(1, *marks))
    return [f"schedule.total_tokens={min(ends, key=lambda end: abs(end - total))}"]
