"""What DeepSpeed would write into a checkpoint: caught, then copied or written here."""

from __future__ import annotations

import copy
import copyreg
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
    CheckpointCommitInfo,
    CheckpointEngine,
)
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch import Tensor

from gpt2_ds.hosts.host_memory import free_memory
from gpt2_ds.hosts.launcher import local_world_size

_MEMORY_SHARE = 0.8

# By its value, in every Python: 3.11.0 to 3.11.3 pickle an Enum as a call of builtins.getattr,
# which `pickles.py` must refuse.
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))

Keep = Callable[[Any, Path], None]


class _Catcher(CheckpointEngine):  # type: ignore[misc]  # deepspeed ships no types
    """Hands every file that the engine writes to `keep`."""

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self._keep = keep

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to do before the first file."""

    def save(self, state_dict: Any, path: str) -> None:
        """One file of the checkpoint."""
        self._keep(_with_its_stage(state_dict), Path(path))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Not used: loading goes through the engine's own."""
        raise NotImplementedError

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Nothing to do after the last file."""
        return True


def _with_its_stage(state: dict[str, Any]) -> dict[str, Any]:
    """With the stage, which bf16 at stage 1 omits (0.19.8): zero_to_fp32 would see no ZeRO."""
    optimizer = state.get("optimizer_state_dict")
    if not isinstance(optimizer, dict) or "group_paddings" not in optimizer:
        return state
    return {**state, "optimizer_state_dict": {"zero_stage": 1, **optimizer}}


def catch_state(engine: DeepSpeedEngine, folder: Path, keep: Keep) -> None:
    """Let the engine save itself, and do something else with each file. Collective.

    DeepSpeed 0.19.8's own writers for later fail or write corrupt files (exit code 0).

    Args:
        engine: whose state is meant.
        folder: the checkpoint; DeepSpeed makes it, and puts its recovery script there.
        keep: called with the state of each file of this rank and its path; the state is valid
            until the next step: copy it, or write it at once.
    """
    own = engine.checkpoint_engine
    engine.checkpoint_engine = _Catcher(keep)
    try:
        with redirect_stdout(StringIO()):
            # So that DeepSpeed's ds_to_universal needs no flag.
            info = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
            engine.save_checkpoint(
                str(folder.parent), tag=folder.name, client_state=info, save_latest=False
            )
    finally:
        engine.checkpoint_engine = own


def bytes_of(value: Any) -> int:
    """Bytes that a copy of a state takes: those of its tensors, shared ones once."""
    seen: dict[tuple[Any, ...], int] = {}
    _visit(value, lambda tensor: seen.setdefault(_identity(tensor), tensor.nbytes))
    return sum(seen.values())


class Buffers:
    """Host memory for copies, kept for the next ones of the same shapes.

    To touch fresh memory for the first time costs several times what the copy itself does.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        self._used: list[Tensor] = []

    def reuse(self) -> None:
        """What was given out before may be written over from now on; what stayed free goes."""
        self._free.clear()
        for tensor in self._used:
            self._free[_form(tensor)].append(tensor)
        self._used = []

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape and type in host memory; its values are undefined."""
        free = self._free[_form(tensor)]
        buffer = free.pop() if free else torch.empty(tensor.shape, dtype=tensor.dtype)
        self._used.append(buffer)
        return buffer

    def free_bytes(self) -> int:
        """What can be given out again without taking memory."""
        return sum(tensor.nbytes for tensors in self._free.values() for tensor in tensors)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype


def fits_in_memory(state: Any, buffers: Buffers) -> bool:
    """Whether every rank of this machine can copy so much, and the steps after have room."""
    fresh = bytes_of(state) - buffers.free_bytes()
    return fresh * local_world_size() < _MEMORY_SHARE * free_memory()


def copy_state(value: Any, buffers: Buffers | None = None) -> Any:
    """A copy in host memory that later steps do not change.

    Tensors that are the same stay the same; a part of a larger one is copied alone. Everything
    that is neither tensor nor container is copied deeply.

    Args:
        value: tensors in containers.
        buffers: where the copies are put; in fresh memory when None.
    """
    buffers = buffers or Buffers()
    copies: dict[tuple[Any, ...], Tensor] = {}

    def of(tensor: Tensor) -> Tensor:
        key = _identity(tensor)
        if key not in copies:
            copies[key] = buffers.like(tensor).copy_(tensor.detach())
        return copies[key]

    return _visit(value, of)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _visit(value: Any, of: Callable[[Tensor], Any]) -> Any:
    """The same containers around what `of` makes of each tensor."""
    if isinstance(value, torch.Tensor):
        return of(value)
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, item in value.items():
            made[key] = _visit(item, of)
        return made
    if type(value) in (list, tuple, set):
        return type(value)(_visit(item, of) for item in value)
    return copy.deepcopy(value)
