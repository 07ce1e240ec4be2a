"""Tells work that takes long from work that hangs."""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[str, bool], None]
"""Hears what the main thread does, to read after "while", and whether it does that alone."""


def _nobody(doing: str, alone: bool) -> None:
    """Hears nothing."""


class Heartbeat:
    """Of one piece of work: whoever does it calls `beat` each time that it has come further.

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
        self._beats, self._reported = 0, -1  # the first report says what is waited for

    def during(self, doing: str) -> Heartbeat:
        """The same listener's, of work in another thread."""
        return Heartbeat(self._listener, doing)

    def of_main_thread(self, doing: str, *, alone: bool = False) -> Heartbeat:
        """The same listener's, of work that the main thread does itself.

        Args:
            doing: what is done, on which file.
            alone: the other ranks may be past this point and wait for this one.
        """
        return _OfMainThread(self._listener, doing, alone)

    def beat(self) -> None:
        """The work has come further. Called by the thread that does it."""
        self._beats += 1

    def report(self, done: bool) -> None:
        """Pass on that the work came further. Called by the main thread, again and again.

        Args:
            done: it is done here; the main thread waits for other ranks.
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
