"""What DeepSpeed would write into a checkpoint: caught on its way, copied or written by us."""

from __future__ import annotations

import copy
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
from torch import Tensor

from gpt2_ds.config.launcher import local_world_size

_MEMORY_SHARE = 0.8

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
        self._keep(state_dict, Path(path))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Not used: loading goes through the engine's own."""
        raise NotImplementedError

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Nothing to do after the last file."""
        return True


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


def fits_in_memory(state: Any) -> bool:
    """Whether every rank of this machine can copy so much, and the steps that go on have room."""
    return bytes_of(state) * local_world_size() < _MEMORY_SHARE * free_memory()


def free_memory() -> int:
    """Bytes of host memory that can be taken: of the machine, or of the container if fewer."""
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        free = (
            next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
        )
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        statistics = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").split()
        # Files that were read stay in memory until it is needed.
        used -= int(statistics[statistics.index("inactive_file") + 1])
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def copy_state(value: Any) -> Any:
    """A copy in host memory that later steps do not change.

    Tensors that are the same stay the same; a part of a larger one is copied alone. Everything
    that is neither tensor nor container is copied deeply.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}

    def of(tensor: Tensor) -> Tensor:
        key = _identity(tensor)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True).contiguous()
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
