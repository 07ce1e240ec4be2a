"""A request to stop the run: a signal, or a launcher that is gone. Imports no torch."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

from gpt2_ds.hosts.process import Process, launchers
from gpt2_ds.hosts.supervisor import is_supervised, stop_signals

LAUNCHER_GONE = "the launcher is gone"
_PERIOD_SECONDS = 1.0


class StopRequest:
    """Remembers that this rank was asked to stop; the loop looks at `reason` between steps.

    Enter it on the main thread, after the rendezvous: before it, a signal simply ends the ranks. A
    handler only remembers: the terminal may be a broken pipe by then. Once the block is left,
    signals do nothing any more, so that a late one kills no process that is about to leave.

    SIGTERM or kill -9 to `deepspeed` on one machine ends that command alone, and the ranks would
    train on without it (DeepSpeed 0.19.8). So a thread looks at the launcher once a second.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._signals = stop_signals()
        parent = Process.find(os.getppid())
        if parent is not None and is_supervised():  # it ends this rank when it ends itself
            parent = parent.parent()
        self._watched = launchers(parent)
        self._left = threading.Event()

    @property
    def reason(self) -> str | None:
        """Why the run should stop: the first signal's name, or `LAUNCHER_GONE`; None: no reason."""
        return self._reason

    def __enter__(self) -> StopRequest:
        for number in self._signals:
            signal.signal(number, self._record)
        if self._watched:
            threading.Thread(target=self._watch, name="launcher watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in self._signals:
            # No SIG_IGN: processes that this one starts would inherit it.
            signal.signal(number, _do_nothing)
        self._left.set()

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self._reason is None:
            self._reason = signal.Signals(number).name

    def _watch(self) -> None:
        while not self._left.wait(_PERIOD_SECONDS):
            if not all(process.lives() for process in self._watched):
                if self._reason is None:
                    self._reason = LAUNCHER_GONE
                return


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass
