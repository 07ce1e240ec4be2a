"""A recipe's small twin: all of its machinery in seconds, on any machine (`--twin`)."""

from __future__ import annotations

from typing import Any

from gpt2_ds.config.batches import step_ends_near
from gpt2_ds.config.numbers import round_up
from gpt2_ds.config.recipe import BatchSection, RampSection, Recipe

_SEQ_LENGTH = 32
_SEQUENCES = 8  # of the full batch; with a ramp from half of it, shared by 1, 2 and 4 ranks
_STEPS = 50
_LEAST_INTERVAL_STEPS = 10
_LOSS_CHUNK_SIZE = 32


def twin_values(recipe: Recipe, ranks: int) -> dict[str, Any]:
    """The recipe at 0.95M parameters and 50 full steps, on Python's standard library.

    What stays is what a rehearsal is for: template, precision, activation checkpointing, optimizer,
    dropout, document mask, lanes, the shape of the schedule, a ramp (of one stair), accumulation
    (of two or more), and how often it validates and saves, though no more than every ten steps.
    Several sources become one. Nothing is compiled, and no copies of checkpoints are sent away.

    Args:
        recipe: the large one.
        ranks: that the twin will train on: up to 4 share 8 sequences a step, of more each has two.

    Returns:
        All values of the twin, as a recipe file would hold them.
    """
    values: dict[str, Any] = recipe.model_dump()
    values["model"] |= {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 192,
        "n_positions": _SEQ_LENGTH,
        "loss_chunk_size": _LOSS_CHUNK_SIZE if recipe.model.loss_chunk_size else 0,
        "compile": False,
    }
    values["tokenizer"] = {"name": "bytes"}
    values["data"] |= {
        "path": "data/python_stdlib",
        "prepare": {"inputs": ["python-stdlib"], "validation_fraction": 0.05},
        "sources": None,
        "phases": [],
        "seq_length": _SEQ_LENGTH,
    }
    batch = _batch(recipe, ranks)
    values["batch"] = batch.model_dump()
    values["schedule"] |= _lengths(recipe, batch)
    steps = _STEPS * recipe.batch.global_batch_tokens / recipe.schedule.total_tokens
    for section in ("evaluation", "checkpoint"):
        interval = round(values[section]["interval_steps"] * steps)
        values[section]["interval_steps"] = max(_LEAST_INTERVAL_STEPS, interval)
    values["evaluation"] |= {
        "tokens": 16 * _SEQ_LENGTH,
        "sample_tokens": min(8, recipe.evaluation.sample_tokens),
    }
    values["checkpoint"]["copy_to"] = None
    values["checkpoint"]["keep_every_steps"] = 0
    values["logging"]["interval_steps"] = 1
    return values


def _batch(recipe: Recipe, ranks: int) -> BatchSection:
    ramp = recipe.batch.ramp
    sequences = round_up(_SEQUENCES, 2 * ranks)
    full_tokens = sequences * _SEQ_LENGTH
    share = _STEPS * full_tokens / recipe.schedule.total_tokens
    return BatchSection(
        global_batch_tokens=full_tokens,
        micro_batch_size=2 if sequences >= 4 * ranks else 1,
        ramp=ramp
        and RampSection(
            start_tokens=full_tokens // 2,
            increment_tokens=full_tokens // 2,
            length_tokens=max(1, round(ramp.length_tokens * share)),
        ),
    )


def _lengths(recipe: Recipe, batch: BatchSection) -> dict[str, int]:
    """The schedule's lengths, in the recipe's proportions; a warm-up has at least one step."""
    full_tokens = batch.global_batch_tokens
    total = step_ends_near(batch, _STEPS * full_tokens)[0]
    lengths = {
        key: round(tokens * total / recipe.schedule.total_tokens)
        for key, tokens in recipe.schedule.model_dump().items()
        if key.endswith("_tokens")
    }
    if recipe.schedule.warmup_tokens:
        lengths["warmup_tokens"] = max(full_tokens, lengths["warmup_tokens"])
    for later in ("stable_tokens", "decay_tokens"):
        if later in lengths:
            lengths[later] = max(lengths["warmup_tokens"], lengths[later])
    return lengths | {"total_tokens": total}
