"""What a checkpoint's files would run when they are loaded; found without loading them."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from gpt2_ds.config.errors import user_error

# What DeepSpeed 0.19.8 saves at the stages, number formats and offloads of this project, besides
# what torch itself holds for harmless: records of numbers. A name that calls, imports or gives
# access to others (builtins.getattr) must never stand here.
_OF_DEEPSPEED = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
_RESTORE = "Do not load it; restore a copy that you trust."


def pickle_names(checkpoint: Path) -> list[str]:
    """Every file of a step directory that torch would load, named by the manifest or not.

    DeepSpeed finds its files by their names, so one that somebody added may be loaded too.
    """
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*.pt"))


def unknown_globals(path: Path) -> list[str]:
    """Classes and functions that a file names and no checkpoint of this project does.

    Nothing of the file is executed, and no tensor is read.

    Args:
        path: of a file that torch.save wrote.

    Raises:
        UserError: it is not in the form in which torch saves now, or cannot be read.
    """
    try:
        named = get_unsafe_globals_in_checkpoint(str(path))
    except (
        OSError,
        RuntimeError,  # a broken zip archive
        ValueError,  # the form of before torch 1.6; TorchScript; no text
        pickle.UnpicklingError,  # an instruction that torch.save never writes
        EOFError,
        IndexError,
        struct.error,
    ) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise user_error(
            str(path), f"not a file as torch.save writes it ({said})", _RESTORE
        ) from error
    return sorted(set(named) - _OF_DEEPSPEED)


def check_pickles(checkpoint: Path, names: Iterable[str]) -> None:
    """Refuse files that would run something when they are loaded.

    Args:
        checkpoint: the step directory.
        names: of its files, relative to it; those of `pickle_names`, or this rank's part of them.

    Raises:
        UserError: names the first file, and what it holds that no checkpoint does.
    """
    for name in names:
        if unknown := unknown_globals(checkpoint / name):
            raise user_error(
                str(checkpoint / name),
                f"holds {', '.join(unknown)}, which a checkpoint of this project never does",
                f"Loading it may run a stranger's program. {_RESTORE}",
            )
