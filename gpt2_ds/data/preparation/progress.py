"""How far a long preparation is, on standard error."""

from __future__ import annotations

import sys
import time

REFRESH_SECONDS = 0.5


class Progress:
    """A line that is rewritten on a terminal; elsewhere a single one at the end.

    Args:
        total_bytes: of input.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.n_documents = self.n_bytes = self.n_tokens = 0
        self._began = time.monotonic()
        self._next_refresh = self._began if sys.stderr.isatty() else float("inf")

    def add(self, n_documents: int, n_bytes: int, n_tokens: int) -> None:
        """Count what was done, and show it if it is time."""
        self.n_documents += n_documents
        self.n_bytes += n_bytes
        self.n_tokens += n_tokens
        now = time.monotonic()
        if now >= self._next_refresh:
            self._next_refresh = now + REFRESH_SECONDS
            left = (now - self._began) * (self.total_bytes / max(1, self.n_bytes) - 1)
            print(f"\r\x1b[K{self}, {max(0.0, left):,.0f} s left", end="", file=sys.stderr)
            sys.stderr.flush()

    def finish(self) -> None:
        """Show the final counts."""
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{clear}{self}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        """Documents, megabytes, tokens, speed."""
        seconds = max(1e-9, time.monotonic() - self._began)
        return (
            f"{self.n_documents:,} documents, {self.n_bytes / 1e6:,.1f} MB in {seconds:,.1f} s "
            f"({self.n_bytes / 1e6 / seconds:,.1f} MB/s), {self.n_tokens:,} tokens"
        )
