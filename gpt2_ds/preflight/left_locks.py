"""Locks that builds of DeepSpeed's compiled ops left behind, for which torch waits without end."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

from gpt2_ds.hosts.launcher import nodes
from gpt2_ds.parallel.agreement import gathered
from gpt2_ds.parallel.compiled_ops import in_use
from gpt2_ds.preflight.verdicts import Check, failed, ok


def extension_locks() -> Check:
    """Locks of builds that died, on any machine. Collective."""
    found = dict(pair for pairs in gathered(_stale_here()) for pair in pairs)
    if found:
        text = ", ".join(f"{path} on {host}" for path, host in found.items())
        fix = f"If nothing compiles there, delete them: rm {' '.join(found)}"
        return failed("extension locks", f"left by builds that died: {text}", f"{fix}.")
    return ok("extension locks", "none left behind")


def _stale_here() -> list[tuple[str, str]]:
    """Lock and machine of each build that no process of this machine works on any more."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    stale = []
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        try:
            age_seconds = time.time() - lock.stat().st_mtime
        except OSError:  # the build ended just now
            continue
        if not in_use(lock, age_seconds, nodes=nodes()):
            stale.append((str(lock), platform.node()))
    return stale
