"""Read the fp32 weights out of a checkpoint of any ZeRO stage, on one process."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

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
        states = torch.load(checkpoint / _MODEL_STATES, map_location="cpu", weights_only=False)
        weights: dict[str, Tensor] = states["module"]
        return weights
    # DeepSpeed tells of each step on the terminal, where the sample is about to be printed.
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        merged: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint.parent), tag=checkpoint.name
        )
    return merged
