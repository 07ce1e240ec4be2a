"""A transformers GPT-2 and ours with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers

from gpt2_ds.model import GPT2Config, GPT2LMHeadModel

SMALL = GPT2Config(vocab_size=97, n_positions=24, n_embd=32, n_layer=2, n_head=4)

Pair = tuple[transformers.GPT2LMHeadModel, GPT2LMHeadModel]


def like_ours(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of transformers in our layout: their Conv1D keeps matrices transposed."""
    inside_block = ".attn." in name or ".mlp." in name
    return tensor.t() if inside_block and tensor.dim() == 2 else tensor


@pytest.fixture
def pair() -> Callable[..., Pair]:
    def build(**sizes: object) -> Pair:
        small = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        special = {"bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(**(small | no_dropout | special | sizes))
        torch.manual_seed(0)
        theirs = transformers.GPT2LMHeadModel(config)
        with torch.no_grad():  # biases start at 0 and would hide a bias that is not used
            for parameter in theirs.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        ours = GPT2LMHeadModel(config)
        ours.load_state_dict({n: like_ours(n, t) for n, t in theirs.state_dict().items()})
        return theirs, ours

    return build
