"""What tensor, sequence and pipeline parallelism need of the model: no change in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt2_ds.model import GPT2Config, GPT2LMHeadModel, lm_head

CONFIG = GPT2Config(vocab_size=97, n_positions=24, n_embd=32, n_layer=1, n_head=4)


def shard(model: GPT2LMHeadModel, number: int, of: int) -> nn.Module:
    """The first block's attention with its part of the heads, as tensor parallelism cuts it."""
    attention = GPT2LMHeadModel(CONFIG, seed=1).transformer.h[0].attn
    whole, width = model.transformer.h[0].attn, CONFIG.n_embd
    part = slice(number * width // of, (number + 1) * width // of)
    attention.c_attn = nn.Linear(width, 3 * width // of)
    attention.c_proj = nn.Linear(width // of, width, bias=False)
    rows = [weight[part] for weight in whole.c_attn.weight.chunk(3)]  # of q, k and v
    attention.c_attn.weight = nn.Parameter(torch.cat(rows))
    biases = [bias[part] for bias in whole.c_attn.bias.chunk(3)]
    attention.c_attn.bias = nn.Parameter(torch.cat(biases))
    attention.c_proj.weight = nn.Parameter(whole.c_proj.weight[:, part])
    return attention


@pytest.mark.parametrize("of", [2, 4])
def test_heads_are_counted_in_what_c_attn_returns(of: int) -> None:
    model = GPT2LMHeadModel(CONFIG, seed=1)
    attention, hidden = model.transformer.h[0].attn, torch.randn(2, 7, CONFIG.n_embd)
    whole, _ = attention(hidden, None, None, False)
    parts = [shard(model, number, of)(hidden, None, None, False)[0] for number in range(of)]
    assert torch.allclose(sum(parts) + attention.c_proj.bias, whole, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 5])
def test_the_loss_is_divided_in_one_place(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {**vars(CONFIG), "loss_chunk_size": rows}
    model, ids = GPT2LMHeadModel(GPT2Config(**sizes), seed=1), torch.randint(0, 97, (2, 9))
    mean = model(ids, shift_labels=ids, return_logits=False).loss.detach()
    monkeypatch.setattr(lm_head, "mean_over_targets", lambda loss_sum, targets: loss_sum)
    total = model(ids, shift_labels=ids, return_logits=False).loss.detach()
    by_torch = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten()).detach()
    assert float(mean) == pytest.approx(float(by_torch))
    assert float(total) == pytest.approx(18 * float(by_torch))
