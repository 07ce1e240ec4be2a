"""The documents of text and JSON lines: of a file, compressed or not, or of standard input."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.preparation import document
from gpt2_ds.data.preparation.byte_streams import BYTE_ORDER_MARK, ByteStream, DamagedError, Lines
from gpt2_ds.data.preparation.document import (
    RENAMED,
    Bad,
    Document,
    Place,
    checked_text,
    damaged,
    filled,
    no_field,
    too_long,
)

ONE_OBJECT = "Give one JSON object a line."


class TextReader:
    """Reads the documents of one stream.

    Args:
        stream: at its beginning.
        name: to call it by in messages.
        place: where to resume: (offset, lines and CRC-32 before it); None: at the beginning.

    Raises:
        UserError: what comes before `place` is not what was read then.
    """

    def __init__(self, stream: ByteStream, name: str, place: Place | None) -> None:
        self._stream = stream
        self._name = name
        self._lines = Lines(stream, document.MAX_DOCUMENT_BYTES)
        self._n_lines = 0
        self._counted_bytes = 0
        self._resumed = place is not None
        if place is not None:
            offset, self._n_lines, crc32 = place
            self._lines.skip(offset)
            if self._lines.crc32 not in (0, crc32):
                raise user_error(
                    name,
                    f"its first {offset} bytes are not those that were read before",
                    "Give the same text again, or delete the folder and begin anew.",
                )
            self._counted_bytes = stream.file_bytes

    def read(self, rows: bool, text_field: str, separator: str | None) -> Iterator[Document | Bad]:
        """The documents.

        Args:
            rows: whether the stream is JSON lines; otherwise it is text.
            text_field: of a row, its text.
            separator: the line between documents of text; None: the stream is a document.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            if rows:
                yield from self._rows(text_field)
            elif separator is not None:
                yield from self._separated(separator.encode())
            elif not self._resumed:  # else the only document was read before
                yield self._whole()
        except DamagedError as error:
            yield damaged(self._where(self._n_lines + 1), error, self._input_bytes())

    def _rows(self, text_field: str) -> Iterator[Document | Bad]:
        for line in self._lines:
            self._n_lines += 1
            if line is None:
                yield too_long(self._where(self._n_lines), self._input_bytes())
            elif not line.isspace():
                yield self._row(line.removeprefix(BYTE_ORDER_MARK), text_field)

    def _row(self, line: bytes, text_field: str) -> Document | Bad:
        text = self._decoded(line, self._n_lines)
        if isinstance(text, Bad):
            return text
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            return self._bad("not_json", f"not JSON ({error})", ONE_OBJECT)
        if not isinstance(row, dict):
            return self._bad("not_an_object", f"a JSON {type(row).__name__}", ONE_OBJECT)
        if text_field not in row:
            return self._bad("no_text_field", no_field(text_field, row), RENAMED)
        where = self._where(self._n_lines)
        return checked_text(row[text_field], where, self._input_bytes(), self._place())

    def _separated(self, separator: bytes) -> Iterator[Document | Bad]:
        held, first_line, is_long = bytearray(), self._n_lines + 1, False
        begun = self._resumed  # a separator before the first document, or after the last, ends none
        for line in self._lines:
            self._n_lines += 1
            if line is not None and self._n_lines == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line is not None and line.rstrip(b"\r\n") == separator:
                if held.strip() or begun or is_long:
                    yield self._document(bytes(held), first_line, is_long)
                held, first_line, is_long, begun = bytearray(), self._n_lines + 1, False, True
            elif line is None or len(held) + len(line) > document.MAX_DOCUMENT_BYTES or is_long:
                held, is_long = bytearray(), True
            else:
                held += line
        if is_long or held.strip() or not begun:
            yield self._document(bytes(held), first_line, is_long)

    def _whole(self) -> Document | Bad:
        held = bytearray()
        while len(held) <= document.MAX_DOCUMENT_BYTES and (piece := self._stream.read()):
            held += piece
        data = bytes(held).removeprefix(BYTE_ORDER_MARK)
        return self._document(data, 1, len(held) > document.MAX_DOCUMENT_BYTES)

    def _document(self, data: bytes, first_line: int, is_long: bool) -> Document | Bad:
        if is_long:
            return too_long(self._where(first_line), self._input_bytes())
        text = self._decoded(data, first_line)
        if isinstance(text, Bad):
            return text
        return filled(text, data, self._where(first_line), self._input_bytes(), self._place())

    def _decoded(self, data: bytes, first_line: int) -> str | Bad:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            where = self._where(first_line + data[: error.start].count(b"\n"))
            what = f"not UTF-8 (byte {data[error.start]:#04x}: {error.reason})"
            return Bad("not_utf8", where, what, "Convert it to UTF-8.", self._input_bytes())

    def _bad(self, why: str, what: str, fix: str) -> Bad:
        return Bad(why, self._where(self._n_lines), what, fix, self._input_bytes())

    def _where(self, line: int) -> str:
        return f"{self._name}: line {line}"

    def _place(self) -> Place:
        return self._lines.offset, self._n_lines, self._lines.crc32

    def _input_bytes(self) -> int:
        """Of the file, compressed or not, since this was asked last."""
        before, self._counted_bytes = self._counted_bytes, self._stream.file_bytes
        return self._counted_bytes - before
