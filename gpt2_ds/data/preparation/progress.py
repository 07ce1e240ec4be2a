"""How far a long preparation is, on standard error."""

from __future__ import annotations

import sys
import time

REFRESH_SECONDS = 0.5
LINE_SECONDS = 30.0


class Progress:
    """A line that is rewritten on a terminal; elsewhere a line now and then, and one at the end.

    Args:
        total_bytes: of input; None: not known before.
        done_bytes: of input, by an earlier start of the same work.
    """

    def __init__(self, total_bytes: int | None, done_bytes: int = 0) -> None:
        self.total_bytes = total_bytes
        self.n_documents = self.n_bytes = self.n_tokens = self.n_input_bytes = 0
        self._left_bytes = (total_bytes or 0) - done_bytes
        self._began = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._next_refresh = self._began + (0 if self._is_terminal else LINE_SECONDS)

    def add(
        self, n_documents: int, n_bytes: int, n_tokens: int, n_input_bytes: int | None = None
    ) -> None:
        """Count what was done, and show it if it is time.

        Args:
            n_documents: how many.
            n_bytes: of their text.
            n_tokens: of them.
            n_input_bytes: that went by for them; None: as many as their text has.
        """
        self.n_documents += n_documents
        self.n_bytes += n_bytes
        self.n_tokens += n_tokens
        self.n_input_bytes += n_bytes if n_input_bytes is None else n_input_bytes
        now = time.monotonic()
        if now >= self._next_refresh:
            self._next_refresh = now + (REFRESH_SECONDS if self._is_terminal else LINE_SECONDS)
            begin, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
            print(f"{begin}{self}{self._time_left(now)}", end=end, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Show the final counts."""
        clear = "\r\x1b[K" if self._is_terminal else ""
        print(f"{clear}{self}", file=sys.stderr, flush=True)

    def _time_left(self, now: float) -> str:
        if self.total_bytes is None or not self.n_input_bytes:
            return ""
        seconds = (now - self._began) * (self._left_bytes / self.n_input_bytes - 1)
        return f", {max(0.0, seconds):,.0f} s left"

    def __str__(self) -> str:
        """Documents, megabytes, tokens, speed."""
        seconds = max(1e-9, time.monotonic() - self._began)
        return (
            f"{self.n_documents:,} documents, {self.n_bytes / 1e6:,.1f} MB in {seconds:,.1f} s "
            f"({self.n_bytes / 1e6 / seconds:,.1f} MB/s), {self.n_tokens:,} tokens"
        )
