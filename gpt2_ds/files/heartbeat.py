"""Tells work that takes long from work that hangs."""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[str, bool], None]
"""Takes what the main thread does, worded to follow "while", and whether only this rank does it."""


def _nobody(doing: str, alone: bool) -> None:
    """Ignores it."""


class Heartbeat:
    """Of one piece of work: the thread that does it calls `beat` with each part that is done.

    - `during`: another thread does it, and the main thread waits. Beats are only counted; the main
      thread calls `report` while it waits, and the watchdog hears of them then. So a thread that
      writes while training runs never hides a main thread that hangs.
    - `of_main_thread`: the main thread does it itself. The watchdog hears each beat at once.

    Args:
        listener: the watchdog; called by the main thread only.
        doing: what is done, on which file.
    """

    def __init__(self, listener: Listener = _nobody, doing: str = "") -> None:
        self._listener, self._doing = listener, doing
        self._beats, self._reported = 0, -1  # so that the first report is passed on

    def during(self, doing: str) -> Heartbeat:
        """A heartbeat for the same listener, of work in another thread."""
        return Heartbeat(self._listener, doing)

    def of_main_thread(self, doing: str, *, alone: bool = False) -> Heartbeat:
        """A heartbeat for the same listener, of work that the main thread does itself.

        Args:
            doing: what is done, on which file.
            alone: the other ranks may be past this point and wait for this one.
        """
        return _OfMainThread(self._listener, doing, alone)

    def beat(self) -> None:
        """Count a part that is done. Called by the thread that does the work."""
        self._beats += 1

    def report(self, done: bool) -> None:
        """Pass on the beats since the last call. Called by the main thread while it waits.

        Args:
            done: the work is done here, and the main thread waits for other ranks.
        """
        if done or self._beats != self._reported:
            self._reported = self._beats
            self._listener(self._doing, False)


class _OfMainThread(Heartbeat):
    def __init__(self, listener: Listener, doing: str, alone: bool) -> None:
        super().__init__(listener, doing)
        self._alone = alone

    def beat(self) -> None:
        self._listener(self._doing, self._alone)


UNHEARD = Heartbeat()
"""Of work that nobody watches."""
