"""Sizes, and what is refused."""

from __future__ import annotations

import doctest
import re

import pytest
import transformers

import gpt2_ds.model.config
import gpt2_ds.model.masking
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel


@pytest.mark.parametrize(
    "given, message",
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd 30 is not divisible by n_head 4"),
        ({"vocab_size": 0}, "vocab_size is 0. It must be above 0."),
        ({"n_layer": -1}, "n_layer is -1. It must be above 0."),
        ({"n_inner": 0}, "n_inner is 0. It must be above 0."),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan. It must be above 0."),
        ({"resid_pdrop": 1.0}, "resid_pdrop is 1.0. A probability of dropout is at least 0"),
        ({"loss_chunk_size": -5}, "loss_chunk_size is -5. Give a number of rows, or 0"),
    ],
)
def test_config_refuses(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        GPT2Config(**given)


@pytest.mark.parametrize(
    "name, value",
    [
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
    ],
)
def test_transformers_config_is_refused_where_it_asks_for_more(name: str, value: object) -> None:
    theirs = transformers.GPT2Config(**{name: value})
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}. This model implements")):
        GPT2LMHeadModel(theirs)


def test_transformers_config_is_read_whole() -> None:
    theirs = transformers.GPT2Config(
        vocab_size=11,
        n_positions=12,
        n_embd=26,
        n_layer=3,
        n_head=2,
        n_inner=17,
        resid_pdrop=0.2,
        embd_pdrop=0.3,
        attn_pdrop=0.4,
        layer_norm_epsilon=1e-4,
        initializer_range=0.03,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    assert GPT2Config.from_hf(theirs) == GPT2Config(
        vocab_size=11,
        n_positions=12,
        n_embd=26,
        n_layer=3,
        n_head=2,
        n_inner=17,
        resid_pdrop=0.2,
        embd_pdrop=0.3,
        attn_pdrop=0.4,
        layer_norm_epsilon=1e-4,
        initializer_range=0.03,
        tie_word_embeddings=False,
    )


@pytest.mark.parametrize("vocab, multiple, padded", [(50257, 128, 50304), (64, 64, 64), (7, 1, 7)])
def test_padded_vocabulary(vocab: int, multiple: int, padded: int) -> None:
    config = GPT2Config(vocab_size=vocab, pad_vocab_to_multiple_of=multiple)
    assert config.padded_vocab_size == padded


@pytest.mark.parametrize("module", [gpt2_ds.model.config, gpt2_ds.model.masking])
def test_examples_in_docstrings(module: object) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
