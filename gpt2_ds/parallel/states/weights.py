"""Read the fp32 weights out of a checkpoint of any ZeRO stage, on one process."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from gpt2_ds.parallel.states.parameter_states import ParameterStates


def load_fp32_weights(checkpoint: Path) -> dict[str, Tensor]:
    """All weights by the names of the module's state dict, whole, on the CPU.

    Args:
        checkpoint: a step's folder.

    Raises:
        RunError: a file is missing, or the checkpoint is of a kind that cannot be read.
    """
    states = ParameterStates(checkpoint)
    weights = {name: states.weight(name) for name in states.names()}
    return weights | {name: weights[holder] for name, holder in states.tied.items()}
