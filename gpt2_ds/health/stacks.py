"""Where each thread of a process is, written down before it ends."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from gpt2_ds.hosts.process import Process

_OWN_END_SECONDS = 5.0
_WRITING_SECONDS = 0.5


class Stacks:
    """The file for this process's stacks; SIGUSR2 writes them too, even where no thread can run.

    Args:
        path: of the file. Every dump is added to it; it is deleted if it stays empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO = sys.stderr

    def open(self) -> None:
        """Be ready: in a moment of need the disk may be full. Without a file, stderr will do."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")
        faulthandler.register(signal.SIGUSR2, file=self._file, all_threads=True, chain=False)

    def dump(self, title: str) -> None:
        """Write the stacks of all threads under a line with `title` and the time."""
        with suppress(OSError, ValueError):
            self._file.write(f"{title}, {datetime.now().isoformat(timespec='seconds')}\n")
            self._file.flush()
            faulthandler.dump_traceback(file=self._file, all_threads=True)

    def close(self) -> None:
        """The stacks are not needed any more."""
        faulthandler.unregister(signal.SIGUSR2)
        if self._file is not sys.stderr:
            self._file.close()
        with suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()


def end_with_stacks(processes: list[Process]) -> None:
    """See to it that processes of this host write their stacks and end.

    A stopped process is woken, and then ends by itself. One whose threads cannot run is made to
    write them by a signal, and killed.
    """
    _send(signal.SIGCONT, processes)
    end = time.monotonic() + _OWN_END_SECONDS
    while time.monotonic() < end and any(process.lives() for process in processes):
        time.sleep(0.1)
    for number in (signal.SIGUSR2, signal.SIGKILL):
        if _send(number, processes):
            time.sleep(_WRITING_SECONDS)


def _send(number: signal.Signals, processes: list[Process]) -> bool:
    """Send a signal to those that live; whether there was one."""
    living = [process for process in processes if process.lives()]
    for process in living:
        with suppress(OSError):
            os.kill(process.pid, number)
    return bool(living)
