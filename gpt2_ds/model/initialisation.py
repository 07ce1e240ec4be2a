"""The first weights: each module is marked with how it is drawn, and one `apply` draws them all."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from gpt2_ds.model.config import GPT2Config

M = TypeVar("M", bound=nn.Module)


def residual_std(config: GPT2Config) -> float:
    """Standard deviation of the two projections of a block that add to the residual stream.

    Scaled by 1/sqrt(N), N = 2 * n_layer being the number of such additions. Source: section 2.3 of
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    """
    return config.initializer_range / math.sqrt(2 * config.n_layer)


def initialised_at(std: float, module: M) -> M:
    """Mark a module: its weight is drawn from a normal distribution, its bias is 0."""
    module.init_std = std  # type: ignore[assignment]
    return module


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Fill one module's own parameters; for `nn.Module.apply`.

    A module without a mark (a tied head) is left alone; a LayerNorm starts as the identity.
    """
    std: float | None = getattr(module, "init_std", None)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.LayerNorm):
        module.weight.fill_(1.0)
    elif std is not None and isinstance(weight, Tensor):
        # Drawn in fp32 and then rounded, so that every dtype starts from the same numbers.
        # empty_like, because zero.Init overrides the dtype given to torch.empty and torch.randn.
        weight.copy_(torch.empty_like(weight, dtype=torch.float32).normal_(std=std))
    if isinstance(bias, Tensor):
        bias.zero_()
