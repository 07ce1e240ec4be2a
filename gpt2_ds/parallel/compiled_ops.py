"""DeepSpeed's compiled ops: whether one can be built here, and locks that dead builds left."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from torch.utils.cpp_extension import _get_build_directory

from gpt2_ds.config.errors import warn

_BUILD_SECONDS_LIMIT = 900  # the slowest op took 290 s on two cores


def can_build() -> bool:
    """A C++ compiler and ninja are on the PATH."""
    compiler = os.environ.get("CXX", "c++")  # as torch chooses it
    return shutil.which(compiler) is not None and shutil.which("ninja") is not None


def clear_stale_lock(op: str, *, nodes: int) -> None:
    """Remove the lock of a build that died; torch would wait for it without end or message.

    A build that was killed leaves `lock` in the op's folder.

    Args:
        op: DeepSpeed's name of the op, e.g. "cpu_adam".
        nodes: machines in this job.
    """
    lock = Path(_get_build_directory(op, verbose=False)) / "lock"
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    if in_use(lock, age, nodes=nodes):
        print(f"{lock}: another process is building {op} ({age:.0f} s); waiting.", file=sys.stderr)
        return
    warn(f"{lock}: a build of {op} died {age:.0f} s ago and left its lock. Removing it.")
    lock.unlink(missing_ok=True)


def in_use(lock: Path, age_seconds: float, *, nodes: int) -> bool:
    """Whether a process may still build under this lock.

    A process of this machine holds it open. With several nodes a builder may run on another one
    that shares the folder, so there a lock also counts as in use until no build takes so long.
    """
    return held_open(lock) or (nodes > 1 and age_seconds < _BUILD_SECONDS_LIMIT)


def held_open(path: Path) -> bool:
    """A process of this machine has the file open, as far as this user may see."""
    target = str(path.resolve())
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):  # it was closed
                    if str(descriptor.readlink()) == target:
                        return True
    return False
