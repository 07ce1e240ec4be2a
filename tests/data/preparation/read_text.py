"""What the reader makes of files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2_ds.data.preparation.document import Bad, Document
from gpt2_ds.data.preparation.reading import BEGINNING, Position, read_documents
from tests.data.preparation.prepared_text import find


def items_of(
    *paths: Path | str,
    text_field: str = "text",
    separator: str | None = None,
    start: Position = BEGINNING,
) -> list[tuple[Position, Document | Bad]]:
    return list(
        read_documents(
            find(*paths), text_field=text_field, document_separator=separator, start=start
        )
    )


def read(
    *paths: Path | str, text_field: str = "text", separator: str | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """Texts; why and where of the bad."""
    items = [each for _, each in items_of(*paths, text_field=text_field, separator=separator)]
    good = [each.data.decode() for each in items if isinstance(each, Document)]
    return good, [(each.why, each.where) for each in items if isinstance(each, Bad)]


def pipe_in(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
