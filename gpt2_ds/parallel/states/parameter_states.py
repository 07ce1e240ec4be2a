"""Read a checkpoint parameter by parameter, whatever ZeRO stage and number of ranks wrote it.

The files are those of DeepSpeed 0.19.8's `engine.save_checkpoint`. Each is mapped into memory and
only what is asked for is read, so a model larger than the memory of one process can be read.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.optimizers import OPTIMIZERS, name_of_type
from gpt2_ds.parallel.states.parameter_layouts import (
    PARAMETER_KEYS,
    CutGroups,
    CutParameters,
    Key,
    Layout,
    Moment,
    Replicated,
)

_LOSS_SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
_MODEL_KEYS = {"module", "optimizer", "param_shapes", "shared_params", "dp_world_size", "ds_config"}
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class ParameterStates:
    """The fp32 weights of a checkpoint and what Adam knows of each, by the module's names.

    Args:
        checkpoint: a step's folder. Its files must have been checked: they are pickles, and are
            loaded as such.

    Raises:
        RunError: a file is missing, or the files are laid out in a way that is not known here.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._model = _read(self._model_file())
        if missing := sorted(_MODEL_KEYS - self._model.keys()):
            raise self._unknown(f"the model's state lacks {', '.join(missing)}")
        self._order = [name for name in self._model["module"] if name not in self.tied]
        self._layout = self._find_layout()

    def names(self) -> list[str]:
        """Every trained parameter in the module's order, a tied one once."""
        return list(self._order)

    @cached_property
    def tied(self) -> dict[str, str]:
        """Second names of tied parameters, to the name that `names` has."""
        if self._model["shared_params"] is not None:
            return dict(self._model["shared_params"])
        first: dict[int, str] = {}  # stage 0 writes no such list; tied tensors share their memory
        return {
            name: holder
            for name, tensor in self._model["module"].items()
            if (holder := first.setdefault(tensor.data_ptr(), name)) != name
        }

    def shape(self, name: str) -> torch.Size:
        """The shape of the whole parameter."""
        for group in self._model["param_shapes"] or [self._shapes_of_stage_0]:
            if name in group:
                return torch.Size(group[name])
        raise KeyError(name)

    def weight(self, name: str) -> Tensor:
        """The optimizer's own copy, whole: float32 on the CPU."""
        return self._whole(name, "weight")

    def moment(self, name: str, key: Moment) -> Tensor:
        """Adam's running mean of the gradient or of its square, whole: float32 on the CPU."""
        return self._whole(name, key)

    def part(self, name: str, key: Key, start: int, stop: int) -> Tensor:
        """Elements start..stop of a parameter laid out in one row.

        Args:
            name: one of `names`.
            key: the weight or one of the moments.
            start: first element.
            stop: the element behind the last; at most the parameter's number of elements.

        Returns:
            (stop - start,) float32 on the CPU. Moments are zeros before the first update.
        """
        if key != "weight" and not self._state(name):
            return torch.zeros(stop - start)
        result, position = torch.empty(stop - start), 0
        for piece in self._layout.pieces(name, key):
            low, high = max(start, position), min(stop, position + piece.numel())
            if low < high:
                result[low - start : high - start] = piece[low - position : high - position]
            position += piece.numel()
        if position != (numel := self.shape(name).numel()):
            raise self._unknown(f"{key} of {name} has {position} elements, not {numel}")
        return result

    def step(self, name: str) -> float:
        """Updates that Adam has made of a parameter; skipped ones are not among them."""
        return float(self._state(name).get("step", 0))

    @cached_property
    def loss_scaler(self) -> dict[str, float] | None:
        """The state of fp16's dynamic loss scale by DeepSpeed's names; None in other formats."""
        states = self._optimizer_states[0] if self._optimizer_states else {}
        if not states.get("dynamic_loss_scale"):
            return None
        return {key: getattr(states["loss_scaler"], key) for key in _LOSS_SCALE_STATE}

    @property
    def counters(self) -> dict[str, int]:
        """What the engine counted: global_steps, global_samples, skipped_steps."""
        return {key: self._model[key] for key in _COUNTERS}

    @property
    def group_settings(self) -> list[dict[str, Any]]:
        """Of each parameter group, the optimizer's settings: name, rate, weight decay, ..."""
        return self._layout.group_settings()

    @property
    def engine_state(self) -> dict[str, Any]:
        """What DeepSpeed wrote of the engine, without weights and optimizer."""
        return {key: self._model[key] for key in self._model if key not in ("module", "optimizer")}

    @property
    def optimizer_state(self) -> dict[str, Any]:
        """What DeepSpeed's optimizer wrote of itself, without what it wrote of parameters."""
        states = self._optimizer_states[0] if self._optimizer_states else {}
        return {key: value for key, value in states.items() if key not in PARAMETER_KEYS}

    def _whole(self, name: str, key: Key) -> Tensor:
        shape = self.shape(name)
        return self.part(name, key, 0, shape.numel()).view(shape)

    def _state(self, name: str) -> dict[str, Any]:
        wrote = name_of_type(self._model["ds_config"]["optimizer"]["type"])
        if wrote not in OPTIMIZERS or not OPTIMIZERS[wrote].elastic:
            raise RunError(
                f"{self._checkpoint}: it was written with optimizer.name {wrote}, and only Adam's "
                "state can be read here; the weights can. Resume with the same template on the "
                "same number of ranks."
            )
        offload = self._zero.get("offload_optimizer") or {}
        if offload.get("ratio", 1.0) < 1.0 and self._zero["stage"] == 3:
            raise RunError(
                f"{self._checkpoint}: it was written with zero_optimization.offload_optimizer.ratio"
                f" {offload['ratio']}, and DeepSpeed 0.19.8 then saves the optimizer's state only "
                "in part. Resume from a checkpoint that was written with ratio 1."
            )
        return self._layout.state(name)

    @property
    def _zero(self) -> dict[str, Any]:
        zero: dict[str, Any] = self._model["ds_config"]["zero_optimization"]
        return zero

    @cached_property
    def _shapes_of_stage_0(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self._model["module"].items()}

    def _model_file(self) -> Path:
        """Stages 0 to 2 write the module once, stage 3 an empty one for each rank."""
        partitioned = self._checkpoint / "zero_pp_rank_0_mp_rank_00_model_states.pt"
        whole = self._checkpoint / "mp_rank_00_model_states.pt"
        return partitioned if partitioned.exists() else whole

    @cached_property
    def _optimizer_states(self) -> list[dict[str, Any]]:
        """Of each rank; none at stage 0, whose optimizer is in the model's file."""
        if self._model["optimizer"] is not None:
            return []
        prefix = "bf16_" if self._model["ds_config"].get("bf16", {}).get("enabled") else ""
        files = (
            self._checkpoint / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            for rank in range(self._model["dp_world_size"])
        )
        return [_read(file)["optimizer_state_dict"] for file in files]

    def _find_layout(self) -> Layout:
        if not self._optimizer_states:
            return Replicated(self._model, self._order)
        first = self._optimizer_states[0]
        if "fp32_flat_groups" in first:
            swapped = self._checkpoint / "offloaded_tensors"
            shapes = self._model["param_shapes"]
            return CutParameters(shapes, self._optimizer_states, self._order, swapped)
        aligned = any(map(any, first.get("param_alignment_paddings", [])))
        if isinstance(first.get("base_optimizer_state"), dict) and not aligned:
            return CutGroups(self._model["param_shapes"], self._optimizer_states)
        raise self._unknown(f"the optimizer's state holds {', '.join(sorted(first))}")

    def _unknown(self, found: str) -> RunError:
        return RunError(
            f"{self._checkpoint}: {found}, which is not how DeepSpeed 0.19.8 writes it (this one: "
            f"{self._model.get('ds_version')}). Use the DeepSpeed that wrote it, with the same "
            "template and number of ranks."
        )


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


def _read(file: Path) -> dict[str, Any]:
    try:
        states: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    except FileNotFoundError:
        raise RunError(
            f"{file}: not there. Restore it from a copy, or remove this checkpoint to resume "
            "from the one before."
        ) from None
    return states
