"""A model's first weights, and how many there are."""

from __future__ import annotations

import math
import time

import pytest
import torch

from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from tests.known_sizes import KNOWN_SIZES
from tests.model.conftest import SMALL


@pytest.mark.parametrize("tied", [True, False])
def test_first_weights_have_the_designed_deviations(tied: bool) -> None:
    config = GPT2Config(
        vocab_size=2000, n_positions=512, n_embd=128, n_layer=8, n_head=4, tie_word_embeddings=tied
    )
    model = GPT2LMHeadModel(config, seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02
            if "c_proj" in name:
                expected = 0.02 / math.sqrt(2 * 8)
            elif "wpe" in name:
                expected = 0.01
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.03 * expected, name
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied


def test_seed_alone_fixes_the_first_weights_in_every_dtype() -> None:
    torch.manual_seed(11)
    plain = GPT2LMHeadModel(SMALL, seed=1).state_dict()
    torch.manual_seed(22)
    again = GPT2LMHeadModel(SMALL, seed=1).state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        half = GPT2LMHeadModel(SMALL, seed=1).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    other = GPT2LMHeadModel(SMALL, seed=2).state_dict()
    for name, tensor in plain.items():
        assert torch.equal(again[name], tensor), name
        assert torch.equal(half[name], tensor.bfloat16()), name
    assert not torch.equal(other["transformer.wte.weight"], plain["transformer.wte.weight"])


@pytest.mark.parametrize(
    "n_positions, n_layer, n_embd, n_head, expected",
    KNOWN_SIZES,
)
def test_parameter_counts(
    n_positions: int, n_layer: int, n_embd: int, n_head: int, expected: int
) -> None:
    config = GPT2Config(n_positions=n_positions, n_layer=n_layer, n_embd=n_embd, n_head=n_head)
    start = time.process_time()
    with torch.device("meta"):
        model = GPT2LMHeadModel(config, seed=0)
    assert time.process_time() - start < 5.0
    assert sum(p.numel() for p in model.parameters()) == expected
