"""Work of a training step, and what a device could do at best: for MFU."""

from __future__ import annotations

# Dense bf16 peaks in FLOP/s, without sparsity, from the vendors' data sheets. The longest name
# that a device's title contains counts.
PEAK_BF16_FLOPS = {
    "A100": 312e12,  # nvidia.com/en-us/data-center/a100
    "A10G": 70e12,  # aws.amazon.com/ec2/instance-types/g5 (NVIDIA A10G)
    "L4": 121e12,  # nvidia.com/en-us/data-center/l4
    "L40S": 362e12,  # nvidia.com/en-us/data-center/l40s
    "H100 PCIe": 756e12,  # nvidia.com/en-us/data-center/h100
    "H100 NVL": 835e12,  # nvidia.com/en-us/data-center/h100
    "H100": 989e12,  # nvidia.com/en-us/data-center/h100 (SXM)
    "H200 NVL": 835e12,  # nvidia.com/en-us/data-center/h200
    "H200": 989e12,  # nvidia.com/en-us/data-center/h200 (SXM)
    "B200": 2250e12,  # nvidia.com/en-us/data-center/hgx
    # amd.com/en/products/accelerators/instinct/mi200/mi250x.html: 383e12 for its two dies, each of
    # which is a device of its own.
    "MI250X": 191.5e12,
    "MI300X": 1307e12,  # amd.com/en/products/accelerators/instinct/mi300/mi300x.html
}


def flops_per_token(n_parameters: int, n_layer: int, n_embd: int, seq_length: int) -> int:
    """Forward and backward work of one token: 6 N + 12 n_layer n_embd T.

    N counts every trained number, embeddings included; recomputed activations do not count.
    Source: PaLM, https://arxiv.org/abs/2204.02311, appendix B.

    >>> flops_per_token(124_475_904, 12, 768, 1024)
    860101632
    """
    return 6 * n_parameters + 12 * n_layer * n_embd * seq_length


def peak_bf16_flops(device_title: str) -> float | None:
    """The dense bf16 peak of one device in FLOP/s; None when it is not in the table.

    >>> peak_bf16_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    >>> peak_bf16_flops("cpu") is None
    True
    """
    words = device_title.replace("-", " ").split()
    known = [name for name in PEAK_BF16_FLOPS if set(name.split()) <= set(words)]
    return PEAK_BF16_FLOPS[max(known, key=len)] if known else None


def model_flops_utilization(
    tokens_per_second: float, flops_a_token: int, device_title: str, world_size: int
) -> float | None:
    """MFU (0-1): the work done over the work that all devices could have done; None if unknown."""
    peak = peak_bf16_flops(device_title)
    return None if peak is None else tokens_per_second * flops_a_token / (peak * world_size)
