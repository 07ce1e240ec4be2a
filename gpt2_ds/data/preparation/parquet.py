"""The documents of parquet files: each row is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_ds.data.preparation.document import (
    RENAMED,
    Bad,
    Document,
    Place,
    checked_text,
    damaged,
    no_field,
)

if TYPE_CHECKING:
    import pyarrow.parquet

BATCH_ROWS = 64
BUFFER_BYTES = 2**20


def parquet_documents(file: Path, text_field: str, place: Place | None) -> Iterator[Document | Bad]:
    """The documents of a file.

    Args:
        file: to read.
        text_field: the column of the texts.
        place: where to resume: (rows before it,).

    Raises:
        OSError: it cannot be opened.
    """
    import pyarrow
    import pyarrow.parquet

    n_read, size = place[0] if place else 0, file.stat().st_size
    n_rows = 0
    try:
        with pyarrow.parquet.ParquetFile(
            file, buffer_size=BUFFER_BYTES, page_checksum_verification=True
        ) as source:
            n_rows = source.metadata.num_rows
            names = source.schema_arrow.names
            if text_field not in names:
                what = no_field(text_field, names, "column")
                yield Bad("no_text_field", f"{file}: row 1", what, RENAMED, size)
                return
            for value in _values(source, text_field, n_read):
                n_read += 1
                where, input_bytes = f"{file}: row {n_read}", _share(size, n_read, n_rows)
                if isinstance(value, UnicodeDecodeError):
                    what = f"not UTF-8 ({value.reason})"
                    yield Bad("not_utf8", where, what, "Convert it to UTF-8.", input_bytes)
                else:
                    yield checked_text(value, where, input_bytes, (n_read,))
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        left = size - size * n_read // max(1, n_rows)
        yield damaged(f"{file}: row {n_read + 1}", error, left)


def _share(size: int, row: int, n_rows: int) -> int:
    """The bytes of the file that are this row's, if all have as many."""
    return size * row // n_rows - size * (row - 1) // n_rows


def _values(
    source: pyarrow.parquet.ParquetFile, column: str, skip: int
) -> Iterator[Any | UnicodeDecodeError]:
    for group in range(source.num_row_groups):
        if skip >= (here := source.metadata.row_group(group).num_rows):
            skip -= here
            continue
        # A row group at a time: a damaged one ends at the same row wherever reading began.
        for batch in source.iter_batches(BATCH_ROWS, row_groups=[group], columns=[column]):
            if skip < len(batch):
                yield from _strings(batch.column(0).slice(skip))
            skip = max(0, skip - len(batch))


def _strings(column: pyarrow.Array) -> Iterator[Any | UnicodeDecodeError]:
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        for scalar in column:
            try:
                yield scalar.as_py()
            except UnicodeDecodeError as error:
                yield error
