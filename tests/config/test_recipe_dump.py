"""A recipe written down is the recipe."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import dump_recipe, flatten, load_recipe
from tests.config.small_recipe import small_values

positive = st.integers(1, 2**63 - 1)
fraction = st.floats(0, 1, exclude_max=True)
rate = st.floats(0, allow_infinity=False, exclude_min=True)
words = st.text(min_size=1, max_size=30)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe that the schema takes; its numbers need not fit each other."""
    values: dict[str, Any] = small_values()
    values["template"], values["seed"] = draw(words), draw(st.integers(0, 2**63 - 1))
    values["model"] |= {"n_layer": draw(positive), "attn_pdrop": draw(fraction)}
    values["model"] |= {"layer_norm_epsilon": draw(rate), "compile": draw(st.booleans())}
    values["tokenizer"]["name"] = draw(words)
    values["data"] |= {"path": draw(words), "seq_length": draw(positive)}
    if draw(st.booleans()):
        inputs = draw(st.lists(words, min_size=1, max_size=3))
        values["data"]["prepare"] = {"inputs": inputs, "validation_fraction": 0.5}
    values["optimizer"] |= {"lr": draw(rate), "betas": [draw(fraction), draw(fraction)]}
    values["optimizer"] |= {"weight_decay": draw(rate), "eps": draw(rate)}
    schedule = {"total_tokens": draw(positive), "warmup_tokens": draw(positive)}
    decay = {"decay_tokens": draw(positive), "min_lr": draw(rate)}
    values["schedule"] = draw(
        st.sampled_from(
            [
                {"name": "constant", **schedule},
                {"name": "cosine", **schedule, **decay},
                {"name": "wsd", **schedule, **decay, "stable_tokens": 5},
            ]
        )
    )
    values["evaluation"]["sample_prompt"] = draw(st.text(max_size=60))
    return Recipe.model_validate(values)


@settings(max_examples=60)
@given(recipes())
def test_a_dumped_recipe_is_the_same_recipe(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path).recipe == recipe


@pytest.mark.parametrize("text", ["0E0", "6e-4", "1_000", "7", "true", "null", "~", "", "x: y"])
def test_text_that_looks_like_something_else_stays_text(text: str, tmp_path: Path) -> None:
    values = small_values()
    values["evaluation"]["sample_prompt"] = text
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(Recipe.model_validate(values)), encoding="utf-8")
    assert load_recipe(path).recipe.evaluation.sample_prompt == text


def test_a_dump_holds_every_key() -> None:
    recipe = Recipe.model_validate(small_values())
    text = dump_recipe(recipe)
    for key, _ in flatten(recipe.model_dump()):
        assert f"{key.rpartition('.')[2]}:" in text
