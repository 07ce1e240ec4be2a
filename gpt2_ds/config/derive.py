"""The numbers that follow from a recipe and a world size: derived exactly, or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.config.recipe import ConstantSchedule, Recipe, WarmupStableDecaySchedule
from gpt2_ds.config.recipe_file import LoadedRecipe
from gpt2_ds.config.sources import source_faults

_KNOWN_VOCABULARIES = {"gpt2": 50257, "bytes": 257}


@dataclass(frozen=True)
class Derived:
    """What no key of a recipe says.

    Args:
        world_size: processes. All of them are data-parallel: dp_world_size equals it.
        global_batch_size: sequences of one optimizer step, over all ranks.
        gradient_accumulation_steps: micro-steps of one optimizer step, per rank.
        steps: optimizer steps of the whole run.
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
    vocab_size: int
    padded_vocab_size: int
    n_parameters: int
    evaluation_windows: int


def divisors(number: int) -> list[int]:
    """All divisors, ascending; above 10^12 only those up to 10^6 and their counterparts.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    low = [d for d in range(1, min(isqrt(number), 10**6) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `number`.

    >>> round_up(50257, 64)
    50304
    """
    return -(-number // multiple) * multiple


def count_parameters(
    n_layer: int, n_embd: int, n_positions: int, vocab_rows: int, tied: bool
) -> int:
    """Trained numbers of a GPT-2 model.

    A block holds 12 C^2 + 13 C: four matrices of 3, 1, 4 and 4 C^2, their biases 9 C, two
    LayerNorms 4 C. The final LayerNorm holds 2 C.

    >>> count_parameters(12, 768, 1024, 50257, tied=True)
    124439808
    """
    heads = 1 if tied else 2
    blocks = n_layer * (12 * n_embd**2 + 13 * n_embd)
    return heads * vocab_rows * n_embd + n_positions * n_embd + blocks + 2 * n_embd


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
        what = f"is no known tokenizer, and no file that can be read ({error.strerror})"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"is no ranks file: {error}"
    fix = "Write gpt2, bytes, or the path of a tiktoken ranks file."
    raise UserError(Fault(loaded.where("tokenizer.name"), f"{name!r} {what}", fix))


def _near_multiples(value: int, of: int, least: int = 1) -> str:
    """The multiples on both sides of `value` that are not below `least`."""
    below, above = value // of * of, round_up(max(value + 1, least), of)
    return f"{below} or {above}" if below >= least else str(above)


def _few(values: list[int], limit: int = 24) -> str:
    text = ", ".join(map(str, values[:limit]))
    return text if len(values) <= limit else f"{text}, ... {values[-1]}"


def derive(loaded: LoadedRecipe, world_size: int) -> Derived:
    """Everything that follows, for so many processes.

    Raises:
        UserError: all values that do not fit each other, each with the values that would.
    """
    recipe = loaded.recipe
    faults = [
        *_model_faults(loaded),
        *_batch_faults(loaded, world_size),
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
    rows = round_up(vocab_size, model.pad_vocab_to_multiple_of)
    global_batch_size = batch.global_batch_tokens // recipe.data.seq_length
    return Derived(
        world_size=world_size,
        dp_world_size=world_size,
        global_batch_size=global_batch_size,
        gradient_accumulation_steps=global_batch_size // (batch.micro_batch_size * world_size),
        steps=recipe.schedule.total_tokens // batch.global_batch_tokens,
        vocab_size=vocab_size,
        padded_vocab_size=rows,
        n_parameters=count_parameters(
            model.n_layer, model.n_embd, model.n_positions, rows, model.tie_word_embeddings
        ),
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
                f"Values that work: {_few(fitting)}.",
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
                f"{recipe.evaluation.tokens} is no multiple of data.seq_length {data.seq_length}",
                f"Nearest: {_near_multiples(recipe.evaluation.tokens, data.seq_length)}.",
            )
        )
    return faults


def _batch_faults(loaded: LoadedRecipe, world_size: int) -> list[Fault]:
    tokens, size = loaded.recipe.batch.global_batch_tokens, loaded.recipe.batch.micro_batch_size
    seq_length = loaded.recipe.data.seq_length
    nearest = _near_multiples(tokens, seq_length * size * world_size)
    if tokens % seq_length:
        return [
            Fault(
                loaded.where("batch.global_batch_tokens"),
                f"{tokens} is no multiple of data.seq_length {seq_length}",
                f"Nearest for {world_size} ranks of {size} sequences: {nearest}.",
            )
        ]
    global_batch_size = tokens // seq_length
    if global_batch_size % world_size:
        fitting = divisors(global_batch_size // size) if global_batch_size % size == 0 else []
        return [
            Fault(
                loaded.where("batch.global_batch_tokens"),
                f"{tokens} tokens are {global_batch_size} sequences of {seq_length}, which "
                f"{world_size} ranks cannot share evenly",
                f"World sizes that work: {_few(fitting)}."
                if fitting
                else f"Nearest for {world_size} ranks of {size} sequences: {nearest}.",
            )
        ]
    per_rank = global_batch_size // world_size
    if per_rank % size:
        return [
            Fault(
                loaded.where("batch.micro_batch_size"),
                f"{size} does not divide the {per_rank} sequences of each of {world_size} ranks "
                f"({tokens} tokens / {seq_length} / {world_size})",
                f"Values that work: {_few(divisors(per_rank))}.",
            )
        ]
    return []


def _length_faults(loaded: LoadedRecipe) -> list[Fault]:
    recipe = loaded.recipe
    faults: list[Fault] = []
    schedule, tokens = recipe.schedule, recipe.batch.global_batch_tokens
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
    if schedule.total_tokens % tokens:
        last_mark = max(mark for _, mark in marks)
        nearest = _near_multiples(schedule.total_tokens, tokens, least=max(1, last_mark))
        faults.append(
            Fault(
                loaded.where("schedule.total_tokens"),
                f"{schedule.total_tokens} is no multiple of batch.global_batch_tokens {tokens}",
                f"Nearest: {nearest}.",
            )
        )
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
