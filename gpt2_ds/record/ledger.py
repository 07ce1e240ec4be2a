"""What happened to a run, one line each: `runs/<name>/ledger.jsonl`."""

from __future__ import annotations

import math
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gpt2_ds.config.errors import RunError
from gpt2_ds.files.json_lines import append_json_line, read_json_lines
from gpt2_ds.files.trouble import write_fault
from gpt2_ds.hosts.launcher import rank

Event = Literal[
    "start",  # the run began at its first step
    "resume",  # the run resumed from a checkpoint
    "world_size",  # it resumed with another number of ranks than it was saved with
    "zero_stage",  # it resumed at another ZeRO stage than it was saved with
    "skip_update",  # an update was skipped: its loss or gradient was not finite
    "loss_spike",  # the loss was far above that of the steps before
    "skip_samples",  # training skips samples from now on, as asked
    "fall_back",  # a checkpoint, or a copy, was not what was saved; the one before was taken
    "stop",  # a signal or a fault ended the process before the run was done
    "restart",  # the launcher started the run again after a failure
    "slow_rank",  # a rank took longer than the others for some time
    "replica",  # weights that all ranks hold alike were not alike
    "done",  # the run took its last step
]


class Ledger:
    """Adds lines to a run's ledger; rank 0 writes, the others do nothing.

    Args:
        run_dir: the run's folder; must exist when the first line is written.
        silent: nothing is written.
    """

    def __init__(self, run_dir: Path, *, silent: bool = False) -> None:
        self.path, self._silent = run_dir / "ledger.jsonl", silent

    def write(self, event: Event, *, step: int, tokens_seen: int, reason: str, **more: Any) -> None:
        """Add one line, with time, host and process, and bring it to the disk.

        Args:
            event: which one.
            step: optimizer steps done.
            tokens_seen: tokens seen by them.
            reason: why, for a person to read.
            more: further values that JSON can hold; "nan" or "inf" for one that is not finite.

        Raises:
            RunError: the disk is full or cannot be written to.
        """
        if rank() != 0 or self._silent:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "event": event,
            "step": step,
            "tokens_seen": tokens_seen,
            "reason": reason,
            "host": platform.node(),
            "pid": os.getpid(),
            **{name: _in_json(value) for name, value in more.items()},
        }
        try:
            append_json_line(self.path, line, durable=True)
        except OSError as error:
            raise RunError(str(write_fault(self.path, error))) from None


def _in_json(value: Any) -> Any:
    """JSON has no NaN and no Infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole lines, in order; empty where there is no file.

    Args:
        path: ledger.jsonl. What a killed process left of a line is skipped.
    """
    return [event for _, event in read_json_lines(path)]
