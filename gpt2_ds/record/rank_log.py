"""A file for what each rank prints; the terminal shows rank 0's, and everyone's errors."""

from __future__ import annotations

import io
import os
import platform
import sys
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

_ERROR = "error"


def keep_log(run_dir: Path, rank: int) -> None:
    """Write what this process prints from now on into logs/rank_NNNNN.log of the run, too.

    On other ranks than 0 it goes only there, but for lines that begin with "error". A launcher over
    ssh closes the terminal before a stopped run has saved; printing must not fail for that.

    Where the file cannot be made, all stays as it is: the run itself says why it cannot write.

    Args:
        run_dir: of the run.
        rank: this process's.
    """
    path = log_path(run_dir, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a", encoding="utf-8", errors="replace", buffering=1)
    except OSError:
        return
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    lock = threading.RLock()  # a destructor may print while this thread does
    prefix = f"rank {rank} {platform.node()}"
    terminals = [sys.stdout, sys.stderr]
    if rank != 0:
        terminals = [_copy_of(stream) for stream in terminals]
        for number in (1, 2):  # what libraries print past Python
            os.dup2(log.fileno(), number)
    sys.stdout, sys.stderr = (
        _Both(log, terminal, lock, prefix, errors_only=rank != 0) for terminal in terminals
    )


def log_end(code: int) -> None:
    """Write the exit code of this process into its log alone: a launcher that dies takes it along.

    Args:
        code: that it is about to end with.
    """
    if isinstance(sys.stdout, _Both):
        sys.stdout.log_only(f"ends with exit code {code}\n")


def log_path(run_dir: Path, rank: int) -> Path:
    """The log of a rank."""
    return run_dir / "logs" / f"rank_{rank:05d}.log"


def _copy_of(stream: TextIO) -> TextIO:
    return os.fdopen(os.dup(stream.fileno()), "w", buffering=1, errors="replace")


class _Both(io.TextIOBase):
    """Writes each line to the log, with time and rank before it, and to the terminal."""

    def __init__(
        self,
        log: TextIO,
        terminal: TextIO,
        lock: threading.RLock,
        prefix: str,
        *,
        errors_only: bool,
    ) -> None:
        self._log, self._terminal, self._lock = log, terminal, lock
        self._prefix, self._errors_only = prefix, errors_only
        self._begins, self._shows = True, False

    def write(self, text: str) -> int:
        with self._lock:
            for line in text.splitlines(keepends=True):
                self._write_line(line)
        return len(text)

    def log_only(self, line: str) -> None:
        """Write a line that no terminal shows."""
        with self._lock, suppress(OSError, ValueError):
            self._log.write(self._stamp() + line)

    def _stamp(self) -> str:
        return f"{datetime.now().isoformat(sep=' ', timespec='seconds')} {self._prefix}: "

    def _write_line(self, line: str) -> None:
        """A line or the beginning of one."""
        stamp = ""
        if self._begins:
            stamp = self._stamp()
            self._shows = not self._errors_only or line.startswith(_ERROR)
        self._begins = line.endswith("\n")
        with suppress(OSError, ValueError):
            self._log.write(stamp + line)
        if self._shows:
            with suppress(OSError, ValueError):  # the terminal may be gone
                self._terminal.write(line)

    def flush(self) -> None:
        with self._lock, suppress(OSError, ValueError):
            self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._terminal.encoding
