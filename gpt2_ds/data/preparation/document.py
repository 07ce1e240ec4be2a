"""A document, or what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

# A text of this size has to be in memory as a whole, several times.
MAX_DOCUMENT_BYTES = 2**26
RENAMED = "Name the field by --text-field."

Place = tuple[Any, ...]


class Document(NamedTuple):
    """A text that will be trained or validated on.

    Args:
        data: the text, in UTF-8.
        input_bytes: of the input that were read for it.
        place: in its file, where reading resumes after it.
    """

    data: bytes
    input_bytes: int
    place: Place


class Bad(NamedTuple):
    """Something that is not a text to train on.

    Args:
        why: in one word, for the manifest.
        where: file and line or row.
        what: is wrong, with the values.
        fix: what to do about it.
        input_bytes: of the input that were read for it.
    """

    why: str
    where: str
    what: str
    fix: str
    input_bytes: int


def checked_text(value: object, where: str, input_bytes: int, place: Place) -> Document | Bad:
    """A row's text as a document, or what is wrong with it."""
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}"
        what = f"its text is {kind}, not a string"
        return Bad("not_a_string", where, what, RENAMED, input_bytes)
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        what = f"half a character (the lone surrogate {value[error.start]!a})"
        return Bad("lone_surrogate", where, what, "Mend the text.", input_bytes)
    if len(data) > MAX_DOCUMENT_BYTES:
        return too_long(where, input_bytes)
    return filled(value, data, where, input_bytes, place)


def filled(text: str, data: bytes, where: str, input_bytes: int, place: Place) -> Document | Bad:
    """A text and its UTF-8 as a document, unless it is empty."""
    if not text or text.isspace():
        return Bad("empty", where, "an empty document", "Remove it.", input_bytes)
    return Document(data, input_bytes, place)


def no_field(text_field: str, names: Iterable[str], kind: str = "field") -> str:
    """What to say of rows without the text's field or column, when they have `names`."""
    return f"no {kind} {text_field!r}; there are {', '.join(map(repr, names)) or 'none'}"


def too_long(where: str, input_bytes: int) -> Bad:
    """What to say of a document that is longer than one may be."""
    what = f"a document of more than {MAX_DOCUMENT_BYTES} bytes, which is the most there may be"
    fix = "Cut it: files or JSON lines, or text with a --document-separator."
    return Bad("too_long", where, what, fix, input_bytes)


def damaged(where: str, why: object, input_bytes: int) -> Bad:
    """What to say of a file that ends too early, or is not of its kind; the rest of it is lost."""
    first = (str(why).splitlines() or [""])[0]
    fix = "Fetch the file again."
    return Bad("damaged", where, f"damaged: it breaks off here ({first})", fix, input_bytes)
