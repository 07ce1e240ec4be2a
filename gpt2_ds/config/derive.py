"""The numbers that follow from a recipe and a world size: derived exactly, or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt2_ds.config.batch_faults import batch_faults, between_steps
from gpt2_ds.config.batches import Batches, steps_until
from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.config.model_shape import ModelShape
from gpt2_ds.config.numbers import divisors, few, near_multiples, round_up
from gpt2_ds.config.recipe import ConstantSchedule, Recipe, WarmupStableDecaySchedule
from gpt2_ds.config.recipe_file import LoadedRecipe
from gpt2_ds.config.sources import source_faults

_KNOWN_VOCABULARIES = {"gpt2": 50257, "bytes": 257}


@dataclass(frozen=True)
class Derived:
    """What no key of a recipe says.

    Args:
        world_size: processes. All of them are data-parallel: dp_world_size equals it.
        global_batch_size: sequences of one (full) optimizer step, over all ranks.
        gradient_accumulation_steps: micro-steps of one (full) optimizer step, per rank.
        steps: optimizer steps of the whole run.
        batches: which step takes how many sequences; all the full batch, but for a ramp.
        vocab_size: tokens of the tokenizer.
        padded_vocab_size: rows of the embedding.
        n_parameters: trained numbers, the padded rows included.
        evaluation_windows: validation sequences that are read each time.
    """

    world_size: int
    dp_world_size: int
    global_batch_size: int
    gradient_accumulation_steps: int
    steps: int
    batches: Batches
    vocab_size: int
    padded_vocab_size: int
    n_parameters: int
    evaluation_windows: int


def vocabulary_size(loaded: LoadedRecipe) -> int:
    """Tokens of the recipe's tokenizer, the special ones included.

    Raises:
        UserError: `tokenizer.name` is neither a known name nor a readable ranks file.
    """
    name = loaded.recipe.tokenizer.name
    if name in _KNOWN_VOCABULARIES:
        return _KNOWN_VOCABULARIES[name]
    try:
        lines = [line.split() for line in Path(name).read_bytes().splitlines() if line.strip()]
        ids = [int(rank) for _, rank in lines]
        beside = Path(name).parent / "tokenizer.json"
        specials = json.loads(beside.read_bytes())["special_tokens"] if beside.exists() else {}
        special_ids = [int(rank) for rank in specials.values()] or [max(ids) + 1]
        return max(*ids, *special_ids) + 1
    except OSError as error:
        what = f"is not a known tokenizer, and not a file that can be read ({error.strerror})"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"is not a ranks file: {error}"
    fix = "Write gpt2, bytes, or the path of a tiktoken ranks file."
    raise UserError(Fault(loaded.where("tokenizer.name"), f"{name!r} {what}", fix))


def derive(loaded: LoadedRecipe, world_size: int) -> Derived:
    """Everything that follows, for a number of processes.

    Raises:
        UserError: all values that do not fit each other, each with the values that would.
    """
    recipe = loaded.recipe
    faults = [
        *_model_faults(loaded),
        *batch_faults(loaded, world_size),
        *_length_faults(loaded),
        *source_faults(loaded),
    ]
    try:
        vocab_size = vocabulary_size(loaded)
    except UserError as error:
        faults.extend(error.faults)
    if faults:
        raise UserError(*faults)
    model, batch = recipe.model, recipe.batch
    steps = steps_until(batch, recipe.schedule.total_tokens)
    assert steps is not None  # _length_faults
    rows = round_up(vocab_size, model.pad_vocab_to_multiple_of)
    global_batch_size = batch.global_batch_tokens // recipe.data.seq_length
    return Derived(
        world_size=world_size,
        dp_world_size=world_size,
        global_batch_size=global_batch_size,
        gradient_accumulation_steps=global_batch_size // (batch.micro_batch_size * world_size),
        steps=steps,
        batches=Batches.share(batch, recipe.data.seq_length, world_size),
        vocab_size=vocab_size,
        padded_vocab_size=rows,
        n_parameters=ModelShape.of(model, rows).n_parameters,
        evaluation_windows=recipe.evaluation.tokens // recipe.data.seq_length,
    )


def _model_faults(loaded: LoadedRecipe) -> list[Fault]:
    recipe, faults = loaded.recipe, []
    model, data = recipe.model, recipe.data
    if model.n_embd % model.n_head:
        fitting = divisors(model.n_embd)
        faults.append(
            Fault(
                loaded.where("model.n_head"),
                f"{model.n_head} heads do not divide n_embd {model.n_embd}",
                f"Values that work: {few(fitting)}.",
            )
        )
    if data.seq_length > model.n_positions:
        faults.append(
            Fault(
                loaded.where("data.seq_length"),
                f"{data.seq_length} tokens, but model.n_positions is {model.n_positions}",
                f"Set data.seq_length to at most {model.n_positions}.",
            )
        )
    if recipe.precision.dtype == "fp32" and recipe.precision.grad_accum_dtype == "same":
        faults.append(
            Fault(
                loaded.where("precision.grad_accum_dtype"),
                "`same` says nothing where precision.dtype is fp32",
                "Remove it, or write fp32.",
            )
        )
    if recipe.evaluation.tokens % data.seq_length:
        faults.append(
            Fault(
                loaded.where("evaluation.tokens"),
                f"{recipe.evaluation.tokens} is not a multiple of data.seq_length "
                f"{data.seq_length}",
                f"Nearest: {near_multiples(recipe.evaluation.tokens, data.seq_length)}.",
            )
        )
    return faults


def _length_faults(loaded: LoadedRecipe) -> list[Fault]:
    recipe = loaded.recipe
    faults: list[Fault] = []
    schedule = recipe.schedule
    marks = [("warmup_tokens", schedule.warmup_tokens)]
    if isinstance(schedule, WarmupStableDecaySchedule):
        marks.append(("stable_tokens", schedule.stable_tokens))
    if not isinstance(schedule, ConstantSchedule):
        marks.append(("decay_tokens", schedule.decay_tokens))
        if schedule.min_lr > recipe.optimizer.lr:
            faults.append(
                Fault(
                    loaded.where("schedule.min_lr"),
                    f"{schedule.min_lr} is above optimizer.lr {recipe.optimizer.lr}",
                    f"Set it to at most {recipe.optimizer.lr}.",
                )
            )
    least = max(1, *(mark for _, mark in marks))
    if wrong := between_steps(recipe.batch, schedule.total_tokens, least):
        faults.append(Fault(loaded.where("schedule.total_tokens"), *wrong))
    marks.append(("total_tokens", schedule.total_tokens))
    for (before, start), (after, end) in pairwise(marks):
        if start > end:
            faults.append(
                Fault(
                    loaded.where(f"schedule.{before}"),
                    f"{start} lies after schedule.{after} {end}",
                    f"Order them: {' <= '.join(name for name, _ in marks)}.",
                )
            )
    return faults


def model_fields(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """The arguments of `gpt2_ds.model.GPT2Config` for this recipe."""
    fields = recipe.model.model_dump(exclude={"compile"})
    checkpointing = recipe.activation_checkpointing.enabled
    return {**fields, "vocab_size": vocab_size, "activation_checkpointing": checkpointing}
