"""Documents from text files, JSON lines, folders, and Python's own standard library."""

from __future__ import annotations

import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2_ds.config.errors import UserError, user_error

PYTHON_STDLIB = "python-stdlib"
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
UNREADABLE_SUFFIXES = (".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".parquet", ".arrow")
# Not documents of the standard library proper; Debian installs the tests elsewhere, so that
# without them the corpus is nearly the same everywhere.
STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)
# Text of this size has to be in memory as a whole, several times.
MAX_DOCUMENT_BYTES = 2**30

OnBad = Literal["error", "skip"]


@dataclass(frozen=True)
class Input:
    """What one word on the command line stands for.

    Args:
        name: as it was typed.
        files: in the order in which they are read.
        n_bytes: of all files.
        lenient: leave out bad files even where mistakes are errors: they are not the user's.
    """

    name: str
    files: tuple[Path, ...]
    n_bytes: int
    lenient: bool = False


@dataclass(frozen=True)
class Document:
    """One text, and how many bytes of input it was."""

    text: str
    input_bytes: int


def find_inputs(names: Sequence[str | Path], others: Sequence[Input] = ()) -> list[Input]:
    """The files behind each name.

    Args:
        names: a file, a folder (all files in it, recursed and sorted, without those whose name
            begins with a dot), or `python-stdlib`.
        others: inputs found before, whose files must not be among these.

    Raises:
        UserError: there is no such file, no file in a folder, or a file is named twice.
    """
    taken = {file.resolve(): each.name for each in others for file in each.files}
    found: list[Input] = []
    for name in map(str, names):
        each = _python_stdlib() if name == PYTHON_STDLIB else _find(name)
        for file in each.files:
            if (resolved := file.resolve()) in taken:
                raise user_error(
                    f"input {name}",
                    f"{file} is part of the input {taken[resolved]} already",
                    "Name each file once.",
                )
            taken[resolved] = name
        found.append(each)
    return found


def _find(name: str) -> Input:
    path = Path(name)
    if path.is_dir():
        files = []
        for folder, folders, here in os.walk(path):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for each in folders:
                if (Path(folder) / each).is_symlink():
                    raise user_error(
                        str(Path(folder) / each),
                        "a link to a folder, which is not followed",
                        "Name the folder it leads to as an input, and delete the link.",
                    )
            files += [Path(folder) / each for each in here if not each.startswith(".")]
        files.sort()
    elif path.is_file():
        files = [path]
    else:
        raise user_error(
            f"input {name}",
            "no such file or folder",
            f"Name a text file, JSON lines, a folder, or {PYTHON_STDLIB}.",
        )
    for file in files:
        if file.suffix.lower() in UNREADABLE_SUFFIXES:
            raise user_error(
                str(file),
                f"{file.suffix} is not read",
                "Unpack it to text files or JSON lines first.",
            )
    if not files:
        raise user_error(f"input {name}", "a folder without files", "Name one that has text in it.")
    return Input(name, tuple(files), _total_bytes(files))


def _python_stdlib() -> Input:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not path.is_symlink()  # Debian has links to other files of it, and out of it
        and not STDLIB_EXCLUDED & set(path.relative_to(root).parts[:-1])
    )
    if not files:
        raise user_error(
            f"input {PYTHON_STDLIB}",
            f"no .py files in {root}",
            "Use a Python with its sources, or name a text file.",
        )
    return Input(PYTHON_STDLIB, tuple(files), _total_bytes(files), lenient=True)


def _total_bytes(files: Sequence[Path]) -> int:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> UserError:
    return user_error(
        str(error.filename),
        f"cannot be read ({error.strerror})",
        "Make it readable, or leave it out.",
    )


def read_documents(
    inputs: Sequence[Input], *, text_field: str, on_bad: OnBad, skipped: Counter[str]
) -> Iterator[Document]:
    """The documents of the inputs, in order.

    Args:
        inputs: what to read. A file is a document; of JSON lines, each row.
        text_field: of a row, its text.
        on_bad: whether a bad document is an error or left out.
        skipped: counts what is left out, by why.

    Raises:
        UserError: a bad document (not UTF-8, without text, not a JSON object, without the text
            field) with `on_bad` "error", naming file and line; a file that cannot be read.
    """
    for each in inputs:
        for file in each.files:
            reader = _Reader(file, on_bad == "skip" or each.lenient, skipped)
            try:
                if file.suffix.lower() in JSON_LINES_SUFFIXES:
                    yield from reader.rows(text_field)
                else:
                    yield from reader.whole()
            except OSError as error:
                raise _unreadable(error) from error


class _Reader:
    def __init__(self, file: Path, skip_bad: bool, skipped: Counter[str]) -> None:
        self.file = file
        self.skip_bad = skip_bad
        self.skipped = skipped

    def whole(self) -> Iterator[Document]:
        if (size := self.file.stat().st_size) > MAX_DOCUMENT_BYTES:
            raise self._too_long(str(self.file), f"{size} bytes")
        data = self.file.read_bytes()
        text = self._decoded(data, first_line=1)
        if text is not None and self._has_text(text, str(self.file)):
            yield Document(text, len(data))

    def rows(self, text_field: str) -> Iterator[Document]:
        with self.file.open("rb") as file:
            lines = iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b"")
            for number, line in enumerate(lines, start=1):
                where = f"{self.file}: line {number}"
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise self._too_long(where, f"more than {MAX_DOCUMENT_BYTES} bytes")
                if line.isspace():
                    continue
                text = self._text_of_row(line, number, where, text_field)
                if text is not None and self._has_text(text, where):
                    yield Document(text, len(line))

    def _text_of_row(self, line: bytes, number: int, where: str, text_field: str) -> str | None:
        decoded = self._decoded(line, first_line=number)
        if decoded is None:
            return None
        try:
            row = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            self._bad("not_json", where, f"not JSON ({error})", "Give one JSON object a line.")
            return None
        if not isinstance(row, dict):
            what = f"a JSON {type(row).__name__}, not an object"
            self._bad("not_an_object", where, what, "Give one JSON object a line.")
        elif text_field not in row:
            what = f"no field {text_field!r}; there are {', '.join(map(repr, row)) or 'none'}"
            self._bad("no_text_field", where, what, "Name the field by --text-field.")
        elif not isinstance(text := row[text_field], str):
            what = f"the field {text_field!r} is {json.dumps(text)[:60]}, not a string"
            self._bad("not_a_string", where, what, "Name another field by --text-field.")
        else:
            return text
        return None

    def _decoded(self, data: bytes, first_line: int) -> str | None:
        try:
            return data.decode("utf-8-sig")  # some editors put a byte order mark first
        except UnicodeDecodeError as error:
            line = first_line + data[: error.start].count(b"\n")
            where = f"{self.file}: line {line}"
            what = f"not UTF-8 (byte {data[error.start]:#04x}: {error.reason})"
            self._bad("not_utf8", where, what, "Convert it to UTF-8.")
            return None

    def _has_text(self, text: str, where: str) -> bool:
        if text and not text.isspace():
            return True
        self._bad("empty", where, "an empty document", "Leave it out.")
        return False

    def _bad(self, why: str, where: str, what: str, fix: str) -> None:
        if not self.skip_bad:
            raise user_error(where, what, f"{fix} Or use --on-bad skip, which counts such ones.")
        self.skipped[why] += 1

    def _too_long(self, where: str, size: str) -> UserError:
        return user_error(
            where,
            f"{size}, and a document has at most {MAX_DOCUMENT_BYTES}",
            "Cut it into documents: a file each, or rows of JSON lines.",
        )
