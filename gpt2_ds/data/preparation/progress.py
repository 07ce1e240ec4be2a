"""How far a long preparation is, on standard error."""

from __future__ import annotations

from gpt2_ds.config.numbers import counted
from gpt2_ds.files.progress_bar import ProgressBar


class DocumentBar(ProgressBar):
    """A progress bar that counts documents, the bytes of their text, and their tokens.

    Args:
        total_bytes: of input; None: not known before.
        done_bytes: of input, by an earlier start of the same work.
    """

    def __init__(self, total_bytes: int | None, done_bytes: int = 0) -> None:
        super().__init__(total_bytes, done_bytes)
        self.n_documents = self.n_bytes = self.n_tokens = 0

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
        self.advance(n_bytes if n_input_bytes is None else n_input_bytes)

    def __str__(self) -> str:
        """Documents, megabytes, tokens, speed."""
        documents = counted(self.n_documents, "document", form=",")
        tokens = counted(self.n_tokens, "token", form=",")
        megabytes, seconds = self.n_bytes / 1e6, self.seconds
        speed = f"{megabytes:,.1f} MB in {seconds:,.1f} s ({megabytes / seconds:,.1f} MB/s)"
        return f"{documents}, {speed}, {tokens}"
