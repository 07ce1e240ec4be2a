"""The folders of a run's checkpoints, and how DeepSpeed splits the state in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2_ds.checkpoint.retention import delete
from gpt2_ds.config.errors import warn
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import world_size


def layout_of(plan: RunPlan, engine: Any) -> str:
    """How DeepSpeed splits the state into files: equal text, equal split."""
    parts = {
        "world_size": world_size(),
        "zero_optimization": plan.template.zero_optimization.model_dump(exclude_none=True),
        "dtype": plan.recipe.precision.dtype,
        "optimizers": [type(engine.optimizer).__name__, type(engine.basic_optimizer).__name__],
    }
    return json.dumps(parts, sort_keys=True)


def remove_partial(checkpoints: Path, needed: Path | None = None) -> None:
    """Delete what a killed job left unfinished.

    What cannot be deleted stays, with a warning: on NFS, a file that some process has open.

    Args:
        checkpoints: the folder that holds all of them.
        needed: the one that must be gone, as its name is needed.

    Raises:
        OSError: `needed` cannot be deleted.
    """
    for partial in checkpoints.glob("step_*.tmp"):
        try:
            delete(partial)
        except OSError as error:
            if partial == needed:
                raise
            warn(f"{partial}: cannot be deleted ({error.strerror}); it is left there")


def quarantine(folder: Path) -> None:
    """Rename a damaged checkpoint, if it is there: it must not count any more."""
    if not folder.is_symlink() and not folder.exists():
        return
    names = (f"{folder.name}.damaged{number}" for number in ("", *range(2, 1000)))
    free = next(name for name in names if not (folder.parent / name).exists())
    folder.rename(folder.parent / free)
