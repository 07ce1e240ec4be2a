"""Read the fp32 weights out of a checkpoint of any ZeRO stage, on one process."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor

_MODEL_STATES = "mp_rank_00_model_states.pt"


def load_fp32_weights(checkpoint: Path, zero_stage: int) -> dict[str, Tensor]:
    """All weights by name, whole, on the CPU.

    Args:
        checkpoint: a step's folder.
        zero_stage: the stage it was written at.
    """
    if zero_stage == 0:
        weights: dict[str, Tensor] = _read(checkpoint / _MODEL_STATES)["module"]
        return weights
    if "zero_stage" not in _optimizer_state(checkpoint, rank=0):
        return _merge_bf16_stage_1(checkpoint)
    # DeepSpeed tells of each step on the terminal, where the sample is about to be printed.
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        merged: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint.parent), tag=checkpoint.name
        )
    return merged


def _read(file: Path) -> dict[str, Any]:
    states: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    return states


def _optimizer_state(checkpoint: Path, rank: int) -> dict[str, Any]:
    (file,) = checkpoint.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    state: dict[str, Any] = _read(file)["optimizer_state_dict"]
    return state


def _merge_bf16_stage_1(checkpoint: Path) -> dict[str, Tensor]:
    """Join what DeepSpeed's BF16_Optimizer saved; its own tool refuses it (seen in 0.19.8).

    That optimizer runs stage 1 in bf16 with gradients that add up in fp32. Each group is one
    vector, its parameters behind each other, cut into equal parts by rank.
    """
    model_states, first = _read(checkpoint / _MODEL_STATES), _optimizer_state(checkpoint, rank=0)
    parts = [
        _optimizer_state(checkpoint, rank)["single_partition_of_fp32_groups"]
        for rank in range(max(first["partition_count"]))
    ]
    weights: dict[str, Tensor] = {}
    for group, shapes in enumerate(model_states["param_shapes"]):
        rest = torch.cat([part[group] for part in parts]).detach()
        for name, shape in shapes.items():
            weights[name], rest = rest[: shape.numel()].view(shape), rest[shape.numel() :]
    for name, twin in model_states["shared_params"].items():
        weights[name] = weights[twin]
    return weights
