"""A recipe's fingerprint: of all that changes the result, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.fingerprint import NEUTRAL, NOT_IN_FINGERPRINT, fingerprint, result_keys
from gpt2_ds.config.recipe import (
    PhaseSection,
    PrepareSection,
    RampSection,
    Recipe,
    SourceSection,
)
from gpt2_ds.config.recipe_file import flatten
from tests.config.small_recipe import SMALL, load_small, small_values

CHANGED: dict[str, object] = {
    "batch.ramp": RampSection(start_tokens=64, increment_tokens=64, length_tokens=640),
    "tokenizer.name": "gpt2",
    "optimizer.name": "other",
    "optimizer.muon_lr": 0.02,
    "optimizer.muon_momentum": 0.95,
    "optimizer.betas": [0.5, 0.5],
    "precision.dtype": "bf16",
    "precision.grad_accum_dtype": "same",
    "data.prepare": PrepareSection(inputs=["x"]),
    "template": "x.json",
    "data.path": "x",
    "data.cache_path": "x",
    "data.sources": {"web": SourceSection(path="x", weight=1.0)},
    "data.phases": [PhaseSection(from_tokens=64, weights={"web": 1.0})],
    "evaluation.sample_prompt": "x",
    "checkpoint.copy_to": "x",
}


def another(key: str, value: object) -> object:
    if key in CHANGED:
        return CHANGED[key]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"say in CHANGED what else {key} may be"
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def keys_of_a_recipe() -> list[str]:
    return [key for key, _ in flatten(Recipe.model_validate(small_values()).model_dump())]


def inside(key: str) -> list[str]:
    """The mappings that a key is in."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def replaced(recipe: Recipe, key: str, value: object) -> Recipe:
    """The recipe with one value changed, past the schema: model_copy does not check."""
    section, _, leaf = key.rpartition(".")
    if not section:
        return recipe.model_copy(update={leaf: value})
    inner = getattr(recipe, section).model_copy(update={leaf: value})
    return recipe.model_copy(update={section: inner})


@pytest.mark.parametrize("key", [key for key in keys_of_a_recipe() if key != "schedule.name"])
def test_the_fingerprint_changes_with_what_changes_the_result(key: str) -> None:
    recipe = Recipe.model_validate(small_values())
    value = dict(flatten(recipe.model_dump()))[key]
    other = replaced(recipe, key, another(key, value))
    left_out = any(key == name or key.startswith(f"{name}.") for name in NOT_IN_FINGERPRINT)
    assert (fingerprint(other, 0) == fingerprint(recipe, 0)) == left_out
    seen = {name for known in result_keys(other) for name in (known, *inside(known))}
    assert (key in seen) == (not left_out)  # a mapping is seen by what is in it
    assert (key in result_keys(recipe)) == (not left_out and key not in NEUTRAL)


def test_the_fingerprint_changes_with_the_schedule() -> None:
    values = small_values()
    recipe = Recipe.model_validate(values)
    for key in ("decay_tokens", "min_lr"):
        del values["schedule"][key]
    values["schedule"]["name"] = "constant"
    assert fingerprint(Recipe.model_validate(values), 0) != fingerprint(recipe, 0)


def test_what_is_left_out_of_the_fingerprint() -> None:
    assert set(NOT_IN_FINGERPRINT) == {
        "template",
        "batch.micro_batch_size",
        "data.path",
        "data.sources.*.path",
        "data.prepare",
        "data.phases",
        "data.cache_path",
        "data.cache_gigabytes",
        "evaluation",
        "checkpoint",
        "health",
        "logging",
    }
    known = {name for key in keys_of_a_recipe() for name in (key, key.partition(".")[0])}
    assert set(NOT_IN_FINGERPRINT) <= known | {"data.sources.*.path"}


def test_a_run_begun_before_there_were_sources_and_lanes_goes_on() -> None:
    recipe = Recipe.model_validate(small_values())
    # What the release before gave for it.
    assert (
        fingerprint(recipe, 10**12)
        == "99d4340cb57d5a58443fb43b68627578715a8402a51be585923c81fc2c6eb4c0"
    )


def mixed(weight: float, path: str, *phases: PhaseSection) -> Recipe:
    sources = {
        "web": SourceSection(path=path, weight=weight),
        "books": SourceSection(path="data/books", weight=1.0),
    }
    recipe = replaced(Recipe.model_validate(small_values()), "data.sources", sources)
    return replaced(replaced(recipe, "data.path", None), "data.phases", list(phases))


def test_weights_and_names_of_sources_are_part_of_the_result_and_paths_are_not() -> None:
    one = mixed(2.0, "data/web")
    assert fingerprint(one, 0) == fingerprint(mixed(2.0, "s3://bucket/web"), 0)
    assert fingerprint(one, 0) != fingerprint(mixed(3.0, "data/web"), 0)
    assert result_keys(one)["data.sources.web.weight"] == 2.0
    assert "data.sources.web.path" not in result_keys(one)


def test_a_phase_counts_once_it_has_begun() -> None:
    phase = PhaseSection(from_tokens=1000, weights={"web": 1.0, "books": 5.0})
    without, with_it = mixed(2.0, "data/web"), mixed(2.0, "data/web", phase)
    assert fingerprint(without, 1000) == fingerprint(with_it, 1000)
    assert fingerprint(without, 1001) != fingerprint(with_it, 1001)
    later = PhaseSection(from_tokens=2000, weights={"web": 1.0, "books": 0.0})
    assert fingerprint(with_it, 2000) == fingerprint(mixed(2.0, "data/web", phase, later), 2000)


def test_the_fingerprint_is_of_values_not_of_their_writing(tmp_path: Path) -> None:
    one = load_small(tmp_path).recipe
    other = load_small(tmp_path, text=SMALL.replace("1e-3", "0.001").replace("1024", "1_024"))
    assert fingerprint(one, 0) == fingerprint(other.recipe, 0)
