"""How DeepSpeed 0.19.8 lays parameters out in the files of a checkpoint, by ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.model_shape import is_matrix

Moment = Literal["exp_avg", "exp_avg_sq"]
Key = Literal["weight", "exp_avg", "exp_avg_sq"]
MOMENTS: tuple[Moment, Moment] = ("exp_avg", "exp_avg_sq")
PARAMETER_KEYS = {  # of an optimizer's file
    "base_optimizer_state",
    "single_partition_of_fp32_groups",
    "param_slice_mappings",
    "optimizer_state_dict",
    "fp32_flat_groups",
}


class Layout(Protocol):
    """Where the numbers of each parameter are."""

    def pieces(self, name: str, key: Key) -> Iterator[Tensor]:
        """One-dimensional views that are the whole parameter, one behind the other."""

    def group_settings(self) -> list[dict[str, Any]]:
        """Of each parameter group, the optimizer's settings."""

    def state(self, name: str) -> dict[str, Any]:
        """Adam's state of the part of the parameter that rank 0 wrote; empty before an update."""


class Replicated:
    """Stage 0: torch's AdamW over the whole parameters, in the order of the engine's groups.

    Args:
        model: what the model's file holds.
        names: of the parameters, in the module's order.
    """

    def __init__(self, model: dict[str, Any], names: list[str]) -> None:
        self._weights = model["module"]
        matrices = [name for name in names if is_matrix(self._weights[name].shape)]
        others = [name for name in names if not is_matrix(self._weights[name].shape)]
        self._optimizer = model["optimizer"]
        self._index = {name: index for index, name in enumerate(matrices + others)}

    def pieces(self, name: str, key: Key) -> Iterator[Tensor]:
        """See `Layout`."""
        tensor = self._weights[name] if key == "weight" else self.state(name)[key]
        yield tensor.reshape(-1)

    def state(self, name: str) -> dict[str, Any]:
        """See `Layout`."""
        state: dict[str, Any] = self._optimizer["state"].get(self._index[name], {})
        return state

    def group_settings(self) -> list[dict[str, Any]]:
        """See `Layout`."""
        groups: list[dict[str, Any]] = self._optimizer["param_groups"]
        return groups


class CutGroups:
    """Stages 1 and 2: each group is one row of parameters, cut into equal parts by rank.

    Weights are saved without the padding behind the row, moments at stages 1 and 2 with it. The
    order in the row is that of `param_shapes`; `param_slice_mappings`, which is there too, has the
    wrong one with round_robin_gradients (seen in 0.19.8).

    Args:
        shapes: of the parameters of each group, in the row's order.
        ranks: the optimizer's state that each rank wrote.
    """

    def __init__(self, shapes: list[dict[str, torch.Size]], ranks: list[dict[str, Any]]) -> None:
        self._ranks = ranks
        self._place: dict[str, tuple[int, int, int]] = {}  # group, first and behind last element
        for group, row in enumerate(shapes):
            start = 0
            for name, shape in row.items():
                self._place[name] = (group, start, start + shape.numel())
                start += shape.numel()

    def pieces(self, name: str, key: Key) -> Iterator[Tensor]:
        """See `Layout`."""
        group, start, stop = self._place[name]
        for rank in self._ranks:
            part = rank["single_partition_of_fp32_groups"][group].detach()
            length = part.numel()
            if key != "weight":
                part = rank["base_optimizer_state"]["state"][group][key]
            yield part[max(0, start) : max(0, min(stop, length))]
            start, stop = start - length, stop - length

    def state(self, name: str) -> dict[str, Any]:
        """See `Layout`."""
        group, _, _ = self._place[name]
        state: dict[str, Any] = self._ranks[0]["base_optimizer_state"]["state"].get(group, {})
        return state

    def group_settings(self) -> list[dict[str, Any]]:
        """See `Layout`."""
        groups: list[dict[str, Any]] = self._ranks[0]["base_optimizer_state"]["param_groups"]
        return groups


class CutParameters:
    """Stage 3: each parameter is cut into equal parts by rank, the last ones padded.

    A rank's parts lie behind each other in rows that `sub_group_size` limits. Rows that were on an
    NVMe disk have a file for each key, named by the numbers of the row's first and last parameter.

    Args:
        shapes: of the parameters of each row, in its order.
        ranks: the optimizer's state that each rank wrote.
        names: of all parameters, in the module's order, by which DeepSpeed numbers them.
        swapped: folder of the rows that were on a disk.
    """

    def __init__(
        self,
        shapes: list[dict[str, torch.Size]],
        ranks: list[dict[str, Any]],
        names: list[str],
        swapped: Path,
    ) -> None:
        self._ranks, self._swapped = ranks, swapped
        number = {name: position for position, name in enumerate(names)}
        self._file = [
            f"{number.get(next(iter(row)))}_{number.get(next(reversed(row)))}.tensor.swp"
            for row in shapes
        ]
        self._place: dict[str, tuple[int, int, int]] = {}  # row, first element, whole size
        for row, group in enumerate(shapes):
            offset = 0
            for name, shape in group.items():
                self._place[name] = (row, offset, shape.numel())
                offset += math.ceil(shape.numel() / len(ranks))

    def pieces(self, name: str, key: Key) -> Iterator[Tensor]:
        """See `Layout`."""
        row, offset, numel = self._place[name]
        length = math.ceil(numel / len(self._ranks))
        for rank, states in enumerate(self._ranks):
            own = min(length, max(0, numel - rank * length))
            if key == "weight":
                values = states["fp32_flat_groups"][row].detach()
            else:
                values = states["optimizer_state_dict"]["state"][row][key]
            if own and not values.numel():
                values = self._on_disk(rank, row, key)
            yield values[offset : offset + own]

    def _on_disk(self, rank: int, row: int, key: Key) -> Tensor:
        name = self._file[row] if key == "weight" else f"{key}-{self._file[row]}"
        path = self._swapped / f"rank{rank:02d}" / name
        if not path.exists():
            raise RunError(
                f"{path}: not there. Restore it from a copy, or remove this checkpoint to resume "
                "from the one before."
            )
        size = path.stat().st_size // torch.float32.itemsize
        return torch.from_file(str(path), size=size, dtype=torch.float32)  # mapped, not read

    def state(self, name: str) -> dict[str, Any]:
        """See `Layout`."""
        row, _, _ = self._place[name]
        state: dict[str, Any] = self._ranks[0]["optimizer_state_dict"]["state"].get(row, {})
        return state

    def group_settings(self) -> list[dict[str, Any]]:
        """See `Layout`."""
        groups: list[dict[str, Any]] = self._ranks[0]["optimizer_state_dict"]["param_groups"]
        return groups
