"""The tensors that are described, against the model's own and the papers' counts."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from gpt2_ds.config.derive import derive, model_fields
from gpt2_ds.config.errors import UserError
from gpt2_ds.config.model_shape import ModelShape, check_model
from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from tests.conftest import REPOSITORY
from tests.known_sizes import KNOWN_SIZES


@pytest.mark.parametrize(
    "positions, n_layer, n_embd, n_head, count",
    KNOWN_SIZES,
)
def test_known_sizes(positions: int, n_layer: int, n_embd: int, n_head: int, count: int) -> None:
    assert ModelShape(n_layer, n_embd, positions, 50257, tied=True).n_parameters == count
    untied = ModelShape(n_layer, n_embd, positions, 50257, tied=False)
    assert untied.n_parameters == count + 50257 * n_embd


def test_the_model_of_every_recipe_is_as_described(subtests: pytest.Subtests) -> None:
    for recipe, tied in product((REPOSITORY / "recipes").glob("*.yaml"), ("true", "false")):
        with subtests.test(recipe=recipe.stem, tied=tied):
            loaded = load_recipe(recipe, [f"model.tie_word_embeddings={tied}"])
            derived = derive(loaded, 1)
            config = GPT2Config(**model_fields(loaded.recipe, derived.vocab_size))
            with torch.device("meta"):
                model = GPT2LMHeadModel(config)
            real = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
            shape = ModelShape.of(loaded.recipe.model, derived.padded_vocab_size)
            assert shape.named() == real
            assert derived.n_parameters == sum(p.numel() for p in model.parameters())


def test_sizes_by_hand() -> None:
    """Two blocks of width 8, 5 positions, 7 tokens: what the plan asks of the tensors."""
    shape = ModelShape(n_layer=2, n_embd=8, n_positions=5, vocab_rows=7, tied=True)
    assert shape.n_block_matrices == (3 + 1 + 4 + 4) * 64
    assert shape.n_largest == 4 * 64
    assert ModelShape(2, 8, n_positions=50, vocab_rows=7, tied=True).n_largest == 50 * 8
    assert ModelShape(2, 8, n_positions=5, vocab_rows=70, tied=False).n_largest == 70 * 8
    # Each block: four LayerNorm vectors and two biases of 8, one of 24 and one of 32.
    assert shape.n_below(8) == 0
    assert shape.n_below(9) == 2 * 6 * 8 + 2 * 8
    assert shape.n_below(33) == 2 * (6 * 8 + 24 + 32) + 2 * 8
    assert shape.n_below(41) == shape.n_below(33) + 5 * 8
    assert shape.n_below(10**6) == shape.n_parameters


SMALL = ModelShape(n_layer=2, n_embd=8, n_positions=5, vocab_rows=7, tied=True)
COUNT = 7 * 8 + 5 * 8 + 2 * (12 * 64 + 13 * 8) + 2 * 8
HERE = f"gpt2_ds/config/model_shape.py: describes {COUNT:,} parameters, and the model has "
FIX = (
    ". Describe there the tensors that gpt2_ds/model/gpt2.py makes: memory, FLOPs and MFU follow "
    "from them."
)


def said(model: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(UserError) as caught:
        check_model(SMALL, model)
    return str(caught.value)


def test_a_model_as_described_passes() -> None:
    check_model(SMALL, SMALL.named())


def test_tensors_that_differ_are_named_with_both_counts() -> None:
    norms = {f"transformer.h.{layer}.attn.q_norm.weight": (4,) for layer in range(2)}
    assert said(SMALL.named() | norms) == (
        f"{HERE}{COUNT + 8:,}: transformer.h.0.attn.q_norm.weight (4) is not described, "
        f"transformer.h.1.attn.q_norm.weight (4) is not described{FIX}"
    )
    last = {"transformer.ln_f.bias": (8,)}
    assert said(dict(SMALL.named().items() - last.items())) == (
        f"{HERE}{COUNT - 8:,}: transformer.ln_f.bias (8) is not in the model{FIX}"
    )
    other = {"transformer.h.1.mlp.c_fc.weight": (8, 32)}  # as many numbers
    assert said(SMALL.named() | other) == (
        f"{HERE}{COUNT:,}: transformer.h.1.mlp.c_fc.weight is (8 x 32), described as (32 x 8){FIX}"
    )


def test_a_message_names_four_of_many() -> None:
    message = said({})
    assert "transformer.h.0.ln_1.weight (8)" not in message
    assert f"transformer.ln_f.bias (8) is not in the model, and 24 more{FIX}" in message
