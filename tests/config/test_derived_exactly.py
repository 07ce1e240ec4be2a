"""Numbers are derived exactly or refused, and every value that a refusal lists works."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt2_ds.config.derive import Derived, derive
from gpt2_ds.config.errors import Fault, faults_of
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import LoadedRecipe
from tests.config.small_recipe import small_values


def loaded_with(changes: dict[str, object]) -> LoadedRecipe:
    values: dict[str, Any] = small_values()
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        values[section][leaf] = value
    return LoadedRecipe(Recipe.model_validate(values), "r.yaml", {})


def refusals(changes: dict[str, object], world_size: int) -> list[Fault]:
    return faults_of(lambda: derive(loaded_with(changes), world_size))


def listed(fix: str) -> list[int]:
    """The numbers that a fix offers, without those that explain them."""
    return [int(word) for word in re.findall(r"\d+", fix.rpartition(":")[2])]


def is_exact(changes: dict[str, object], derived: Derived) -> None:
    recipe = loaded_with(changes).recipe
    sequences = recipe.batch.micro_batch_size * derived.gradient_accumulation_steps
    assert sequences * derived.dp_world_size == derived.global_batch_size
    assert derived.global_batch_size * recipe.data.seq_length == recipe.batch.global_batch_tokens
    assert derived.steps * recipe.batch.global_batch_tokens == recipe.schedule.total_tokens
    assert derived.evaluation_windows * recipe.data.seq_length == recipe.evaluation.tokens
    assert derived.padded_vocab_size % recipe.model.pad_vocab_to_multiple_of == 0
    assert min(derived.steps, derived.gradient_accumulation_steps, derived.evaluation_windows) >= 1


sizes = st.integers(1, 48)


@settings(max_examples=100)
@given(
    seq_length=sizes,
    sequences=sizes,
    odd_tokens=st.sampled_from([0, 0, 0, 1]),
    micro_batch_size=st.integers(1, 6),
    world_size=st.integers(1, 9),
    steps=sizes,
    odd_total=st.sampled_from([0, 0, 0, 1, -1]),
    warmup=st.sampled_from([0, 1]),
    decay=st.floats(0.1, 1.0),
    evaluation_tokens=st.integers(1, 200),
    n_embd=sizes,
    n_head=st.integers(1, 6),
)
def test_derived_exactly_or_refused_with_values_that_work(
    seq_length: int,
    sequences: int,
    odd_tokens: int,
    micro_batch_size: int,
    world_size: int,
    steps: int,
    odd_total: int,
    warmup: int,
    decay: float,
    evaluation_tokens: int,
    n_embd: int,
    n_head: int,
) -> None:
    tokens = seq_length * sequences + odd_tokens
    total = tokens * steps + odd_total
    assume(total >= max(1, warmup))
    changes: dict[str, object] = {
        "data.seq_length": seq_length,
        "batch.global_batch_tokens": tokens,
        "batch.micro_batch_size": micro_batch_size,
        "schedule.total_tokens": total,
        "schedule.warmup_tokens": warmup,
        "schedule.decay_tokens": max(warmup, 1, int(total * decay)),
        "evaluation.tokens": evaluation_tokens,
        "model.n_embd": n_embd,
        "model.n_head": n_head,
    }
    faults = refusals(changes, world_size)
    if not faults:
        return is_exact(changes, derive(loaded_with(changes), world_size))
    for fault in faults:
        key = fault.where.removeprefix("r.yaml: ")
        offered = listed(fault.fix)
        assert offered, fault
        for value in offered:
            if fault.fix.startswith("World sizes that work"):
                after = refusals(changes, value)
            else:
                after = refusals({**changes, key: value}, world_size)
            # A batch of another size asks for another total_tokens; that is a fault of its own.
            section = "batch." if key.startswith("batch.") else key
            assert not [f for f in after if section in f.where], (fault, value)
            if len(faults) == 1 and not (key.startswith("batch.global") and "Nearest" in fault.fix):
                assert after == []


@settings(max_examples=100)
@given(tokens=st.integers(1, 500), total=st.integers(1, 5000), data=st.data())
def test_offered_totals_keep_the_schedule_in_order(tokens: int, total: int, data: Any) -> None:
    stable = data.draw(st.integers(1, 5000))
    decay = data.draw(st.integers(stable, 6000))
    values = small_values()
    values["batch"] = {"global_batch_tokens": tokens * 64, "micro_batch_size": 1}
    values["schedule"] |= {"name": "wsd", "warmup_tokens": 0, "stable_tokens": stable}
    values["schedule"] |= {"decay_tokens": decay, "total_tokens": total}
    for value in [total, *_offers(values)]:
        values["schedule"]["total_tokens"] = value
        faults = _faults(values)
        assert value == total or faults == []


def _faults(values: dict[str, Any]) -> list[Fault]:
    return faults_of(lambda: derive(LoadedRecipe(Recipe.model_validate(values), "r", {}), 1))


def _offers(values: dict[str, Any]) -> list[int]:
    fixes = [f.fix for f in _faults(values) if f.where == "r: schedule.total_tokens"]
    return [value for fix in fixes for value in listed(fix)]
