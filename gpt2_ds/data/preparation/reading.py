"""The documents of all inputs in order, from the beginning or where reading resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gpt2_ds.data.preparation.byte_streams import open_stream, standard_input
from gpt2_ds.data.preparation.document import Bad, Document, Place
from gpt2_ds.data.preparation.hub import hub_documents
from gpt2_ds.data.preparation.parquet import parquet_documents
from gpt2_ds.data.preparation.sources import STANDARD_INPUT, Input, holds_rows, unreadable
from gpt2_ds.data.preparation.text_streams import TextReader


class Position(NamedTuple):
    """Where in all inputs reading resumes.

    Args:
        input: which one.
        file: which of its files.
        place: in the file; None: its beginning.
    """

    input: int
    file: int
    place: Place | None


BEGINNING = Position(0, 0, None)


def read_documents(
    inputs: Sequence[Input],
    *,
    text_field: str,
    document_separator: str | None = None,
    start: Position = BEGINNING,
) -> Iterator[tuple[Position, Document | Bad]]:
    """The documents of the inputs, in order, each with the position after it.

    Args:
        inputs: what to read.
        text_field: of a row of JSON lines, parquet or a dataset, its text.
        document_separator: the line between documents of a text file; None: a file is a document.
        start: where to begin.

    Raises:
        UserError: a file cannot be read, or standard input is not what it was.
        RunError: reading a dataset of the hub failed.
    """
    place = start.place
    for i in range(start.input, len(inputs)):
        source = inputs[i]
        first = start.file if i == start.input else 0
        for j in range(first, 1 if source.is_one_stream else len(source.files)):
            for item in _read(source, j, text_field, document_separator, place):
                place = item.place if isinstance(item, Document) else place
                yield Position(i, j, place), item
            place = None


def _read(
    source: Input, file: int, text_field: str, separator: str | None, place: Place | None
) -> Iterator[Document | Bad]:
    if source.hub is not None:
        yield from hub_documents(source.hub, text_field, place)
        return
    if source.name == STANDARD_INPUT:
        stream = standard_input()
        rows = stream.first_character() == b"{"
        yield from TextReader(stream, "standard input", place).read(rows, text_field, separator)
        return
    path = source.files[file]
    try:
        if path.suffix.lower() == ".parquet":
            yield from parquet_documents(path, text_field, place)
        else:
            with open_stream(path) as stream:
                reader = TextReader(stream, str(path), place)
                yield from reader.read(holds_rows(path), text_field, separator)
    except OSError as error:
        raise unreadable(path, error) from error
