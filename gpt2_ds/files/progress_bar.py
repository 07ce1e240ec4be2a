"""The progress of long work with files, on standard error."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Self

from tqdm import tqdm

REFRESH_SECONDS = 0.5
LINE_SECONDS = 30.0


class ProgressBar:
    """A bar on a terminal; elsewhere, as in a log file, a line now and then.

    Args:
        total_bytes: to be read or copied; None: not known before.
        done_bytes: of them, by an earlier start of the same work.
        title: what it is; stands before the bytes.
    """

    def __init__(self, total_bytes: int | None, done_bytes: int = 0, title: str = "") -> None:
        self.total_bytes, self.done_bytes = total_bytes, done_bytes
        self._first_bytes, self._title = done_bytes, title
        self._began = time.monotonic()
        self._bar = _Bar(total=total_bytes) if sys.stderr.isatty() else None
        self._interval = LINE_SECONDS if self._bar is None else REFRESH_SECONDS
        self._next = self._began + (LINE_SECONDS if self._bar is None else 0.0)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, n_bytes: int) -> None:
        """Count more bytes as done, and show it if it is time.

        Args:
            n_bytes: since the last call.
        """
        self.advance_to(self.done_bytes + n_bytes)

    def advance_to(self, done_bytes: int) -> None:
        """As `advance`.

        Args:
            done_bytes: in all.
        """
        self.done_bytes = done_bytes
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._interval
        text = f"{self}{self._time_left(now)}"
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.show(self.done_bytes, text)

    def finish(self) -> None:
        """Print a last line in place of the bar."""
        self.__exit__()
        print(self, file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return max(1e-9, time.monotonic() - self._began)

    def _time_left(self, now: float) -> str:
        done = self.done_bytes - self._first_bytes
        if self.total_bytes is None or not done:
            return ""
        seconds = (now - self._began) * (self.total_bytes - self.done_bytes) / done
        return f", {max(0.0, seconds):,.0f} s left"

    def __str__(self) -> str:
        """Megabytes and speed."""
        total = "" if self.total_bytes is None else f"of {self.total_bytes / 1e6:,.1f} "
        speed = (self.done_bytes - self._first_bytes) / 1e6 / self.seconds
        return (
            f"{self._title}{self.done_bytes / 1e6:,.1f} {total}MB in {self.seconds:,.1f} s "
            f"({speed:,.1f} MB/s)"
        )


class _Bar(tqdm):  # type: ignore[misc]  # has no types
    """tqdm draws, fits the terminal and clears it; when and with what words is said here."""

    monitor_interval = 0  # no thread, which would be there when workers are forked

    def __init__(self, total: int | None) -> None:
        words = "{percentage:3.0f}%|{bar}| {desc}" if total else "{desc}"
        super().__init__(
            total=total,
            file=sys.stderr,
            leave=False,
            bar_format=words,
            ncols=_columns(),
            nrows=20,  # else tqdm asks the terminal, and draws nothing on one without a size
        )

    def show(self, done: int, text: str) -> None:
        """Draw it again."""
        self.n, self.ncols = done, _columns()
        self.set_description_str(text, refresh=False)
        self.refresh()


def _columns() -> int:
    """Of the terminal; 80 where it does not know, as in some containers."""
    return shutil.get_terminal_size().columns
