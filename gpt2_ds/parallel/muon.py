"""What DeepSpeed's Muon needs to update the matrices of the blocks, and nothing else.

Muon: https://kellerjordan.github.io/posts/muon. DeepSpeed 0.19.8 orthogonalizes whole matrices
inside its ZeRO optimizers, and gives all other parameters to torch's AdamW or DeepSpeedCPUAdam.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn

_MOMENTUM = "momentum_buffer"
_EMBEDDINGS = ("wte.weight", "wpe.weight")


@contextmanager
def muon_within_blocks(deepspeed_config: dict[str, Any]) -> Iterator[None]:
    """Around `deepspeed.initialize`: its Muon leaves the embeddings to AdamW.

    DeepSpeed 0.19.8 gives it every matrix whose name holds neither "embed" nor "lm_head": GPT-2's
    wte and wpe, too. With another optimizer nothing is changed.

    Args:
        deepspeed_config: what `deepspeed.initialize` gets.
    """
    if deepspeed_config.get("optimizer", {}).get("type") != "Muon":
        yield
        return
    mark = deepspeed.set_optimizer_flags

    def mark_blocks(config: Any, model: nn.Module) -> None:
        mark(config, model)
        for name, parameter in model.named_parameters():
            if name.endswith(_EMBEDDINGS):
                setattr(parameter, "use_muon", False)  # noqa: B010  # not an attribute of torch's

    deepspeed.set_optimizer_flags = mark_blocks
    try:
        yield
    finally:
        deepspeed.set_optimizer_flags = mark


def keep_momentum(engine: DeepSpeedEngine) -> None:
    """Muon's momentum stays as it is when DeepSpeed skips a step.

    At stages 0 to 2 it does so by itself; at stage 3 and with offload DeepSpeed 0.19.8 takes the
    gradient in before it looks at the norm. There each step keeps a copy of the momentum meanwhile.
    With another optimizer nothing is changed.
    """
    optimizer: Any = engine.optimizer
    state = engine.basic_optimizer.state
    in_time = engine.zero_optimization_stage() < 3 and not engine.zero_use_cpu_optimizer()
    if in_time or not any(group.get("use_muon") for group in optimizer.param_groups):
        return
    own_step = optimizer.step

    def step(*args: Any, **kwargs: Any) -> None:
        before = {row: kept[_MOMENTUM].clone() for row, kept in state.items() if _MOMENTUM in kept}
        own_step(*args, **kwargs)
        if not optimizer.overflow:
            return
        for row, kept in state.items():
            if _MOMENTUM in kept:
                kept[_MOMENTUM].copy_(before.get(row, torch.zeros_like(row)))

    optimizer.step = step


def rate_factor(group: dict[str, Any], optimizer_params: dict[str, Any]) -> float:
    """What a parameter group's rate is of the learning rate: for Muon's the ratio of the peaks.

    Args:
        group: of the engine's optimizer.
        optimizer_params: of the config; `muon_lr` and `adam_lr` are the peaks.
    """
    if not group.get("use_muon", False):
        return 1.0
    return float(optimizer_params["muon_lr"] / optimizer_params["adam_lr"])
