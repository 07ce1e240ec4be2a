"""The work of a step against torch's own count, and the table of devices."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.plan.flops import flops_per_token, model_flops_utilization, peak_bf16_flops


@pytest.mark.parametrize(
    "title, peak",
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA B200", 2250e12),
        ("AMD Instinct MI250X", 191.5e12),
        ("AMD Instinct MI300X", 1307e12),
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_the_peak_of_a_device(title: str, peak: float | None) -> None:
    assert peak_bf16_flops(title) == peak


def test_mfu_by_hand() -> None:
    # GPT-2 124M on eight A100: 860,101,632 FLOP a token, 1.2e6 tokens/s, of 8 x 312e12.
    per_token = flops_per_token(124_475_904, 12, 768, 1024)
    assert per_token == 6 * 124_475_904 + 12 * 12 * 768 * 1024
    mfu = model_flops_utilization(1.2e6, per_token, "NVIDIA A100-SXM4-40GB", 8)
    assert mfu == pytest.approx(0.41351, abs=1e-5)
    assert model_flops_utilization(1.2e6, per_token, "cpu", 8) is None


SIZES = [
    GPT2Config(
        vocab_size=250, pad_vocab_to_multiple_of=64, n_positions=64, n_embd=32, n_layer=2, n_head=2
    ),
    GPT2Config(vocab_size=257, n_positions=128, n_embd=64, n_layer=3, n_head=4),
]


@pytest.mark.parametrize("config", SIZES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
def test_the_formula_against_torchs_count(config: GPT2Config) -> None:
    """The formula's only excess over the matrix products: wpe, biases and LayerNorm count in N."""
    model, T, C, L = GPT2LMHeadModel(config, seed=1), config.n_positions, config.n_embd, 0
    L = config.n_layer
    tokens = torch.zeros(2, T, dtype=torch.long)
    # The plain kernel: a fused backward would compute the scores a second time.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, shift_labels=tokens, return_logits=False).loss.backward()
    per_token = counter.get_total_flops() / tokens.numel()
    n_parameters = sum(p.numel() for p in model.parameters())
    claimed = flops_per_token(n_parameters, L, C, T)
    no_product = T * C + L * 13 * C + 2 * C  # wpe; biases and LayerNorms
    assert claimed - per_token == 6 * no_product


def test_at_the_size_of_gpt2_the_excess_is_below_one_percent() -> None:
    n_parameters, claimed = 124_475_904, flops_per_token(124_475_904, 12, 768, 1024)
    no_product = 1024 * 768 + 12 * 13 * 768 + 2 * 768
    assert 0.006 < 6 * no_product / claimed < 0.007
    assert 0.12 < 1 - 6 * n_parameters / claimed < 0.14  # attention's part
