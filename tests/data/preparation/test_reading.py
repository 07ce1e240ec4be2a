from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gpt2_ds.data.preparation import document
from gpt2_ds.data.preparation.document import Bad, Document
from gpt2_ds.data.preparation.reading import Position
from tests.data.preparation.prepared_text import find, rows_of, texts, write_rows
from tests.data.preparation.read_text import items_of, pipe_in, read


def test_a_folder_is_recursed_and_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "c/rows.jsonl", ".git/x", "c/.hidden", "B.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "c" / "rows.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 3}')
    assert read(tmp_path)[0] == ["B.md", "a/z.txt", "b.txt", "one", "two"]
    assert find(tmp_path)[0].n_bytes == 4 + 7 + 5 + 41


def test_text_comes_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf a\r\nb\n\x00\xc3\xa9")
    assert read(tmp_path / "x.txt")[0] == [" a\r\nb\n\x00é"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.JSON"
    path.write_bytes(b'\xef\xbb\xbf{"body": "a\\nb"}\r\n{"body": "\\ud83d\\ude42"}\n')
    assert read(path, text_field="body") == (["a\nb", "🙂"], [])


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".GZ"])
def test_packed_or_not(tmp_path: Path, suffix: str) -> None:
    documents = [text + "x" * 50_000 for text in texts(20)]  # longer than a piece, in all
    rows = write_rows(tmp_path / f"x.jsonl{suffix.lower()}", documents)
    rows = rows.rename(tmp_path / f"x.jsonl{suffix}")
    text = tmp_path / f"x.txt{suffix}"
    text.write_bytes(rows.read_bytes())
    assert read(rows) == (documents, [])
    assert read(text) == ([rows_of(documents).decode()], [])
    counted = sum(item.input_bytes for _, item in items_of(rows))
    assert counted == rows.stat().st_size  # so the time left comes out


def test_parquet(tmp_path: Path) -> None:
    documents = texts(300)
    path = write_rows(tmp_path / "x.parquet", documents)
    assert read(path) == (documents, [])
    assert sum(item.input_bytes for _, item in items_of(path)) == path.stat().st_size


@pytest.mark.parametrize(
    "data, wanted",
    [
        (b'  \n{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
        (b" " * 70_000 + b'{"text": "a"}\n', ["a"]),
        (b' [{"text": "a"}]\n', [' [{"text": "a"}]\n']),
        (b" " * 140_000 + b"a", [" " * 140_000 + "a"]),
    ],
)
def test_standard_input(data: bytes, wanted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(data, monkeypatch)
    assert read("-") == (wanted, [])


BAD_ROWS = [
    ("not_json", b"{oops", "not JSON (Expecting "),
    ("not_json", b"[" * 100_000, "not JSON (maximum recursion"),
    ("not_an_object", b"[1]", "a JSON list"),
    ("no_text_field", b'{"body": "x"}', "no field 'text'; there are 'body'"),
    ("no_text_field", b"{}", "no field 'text'; there are none"),
    ("not_a_string", b'{"text": null}', "its text is null, not a string"),
    ("not_a_string", b'{"text": ["a"]}', "its text is a list, not a string"),
    ("empty", b'{"text": ""}', "an empty document"),
    ("empty", b'{"text": " \\n"}', "an empty document"),
    ("not_utf8", b'{"text": "\xe9"}', "not UTF-8 (byte 0xe9: invalid continuation"),
    ("lone_surrogate", b'{"text": "a\\ud800"}', r"half a character (the lone surrogate '\ud800')"),
]


@pytest.mark.parametrize("why, row, what", BAD_ROWS)
def test_bad_rows(tmp_path: Path, why: str, row: bytes, what: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + row + b'\n{"text": "b"}\n')
    first, bad, last = (item for _, item in items_of(path))
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert (first.data, last.data) == (b"a", b"b")
    assert isinstance(bad, Bad)
    assert (bad.why, bad.where) == (why, f"{path}: line 2")
    assert bad.what.startswith(what)
    assert bad.fix.endswith(".")


@pytest.mark.parametrize(
    "why, data, line",
    [("not_utf8", b"a\nb\nc\xff", 3), ("empty", b"", 1), ("empty", b" \n", 1)],
)
def test_bad_files(tmp_path: Path, why: str, data: bytes, line: int) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    assert read(path) == ([], [(why, f"{path}: line {line}")])


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    binary = pyarrow.array([b"a", b"\xff", b"c", b"", None, b"e"])
    table = pyarrow.table({"text": pyarrow.Array.from_buffers(
        pyarrow.string(), 6, binary.buffers())})  # fmt: skip
    pyarrow.parquet.write_table(table, path)
    assert read(path) == (
        ["a", "c", "e"],
        [
            ("not_utf8", f"{path}: row 2"),
            ("empty", f"{path}: row 4"),
            ("not_a_string", f"{path}: row 5"),
        ],
    )
    ((_, bad),) = items_of(path, text_field="body")
    assert isinstance(bad, Bad)
    assert (bad.why, bad.what) == ("no_text_field", "no column 'body'; there are 'text'")


def test_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_DOCUMENT_BYTES", 30)
    (tmp_path / "x.txt").write_text("y" * 31)
    (tmp_path / "y.txt").write_text("y" * 30)
    rows = write_rows(tmp_path / "z.jsonl", ["a", "b" * 30, "c"])
    parquet = write_rows(tmp_path / "z.parquet", ["a", "b" * 31, "c" * 30])
    assert read(tmp_path) == (
        ["y" * 30, "a", "c", "a", "c" * 30],
        [
            ("too_long", f"{tmp_path / 'x.txt'}: line 1"),
            ("too_long", f"{rows}: line 2"),
            ("too_long", f"{parquet}: row 2"),
        ],
    )
    (_, bad) = items_of(tmp_path / "x.txt")[0]
    assert isinstance(bad, Bad)
    assert bad.what == "a document of more than 30 bytes, which is the most there may be"


SEPARATED = [
    ("a\n%%\nb\n", ["a\n", "b\n"], []),
    ("%%\na\r\n%%\r\nb\n%%\n", ["a\r\n", "b\n"], []),
    ("\ufeff%%\na\n", ["a\n"], []),
    ("a\n%%%\n %%\n", ["a\n%%%\n %%\n"], []),
    ("a\n%%\n%%\nb", ["a\n", "b"], [("empty", 3)]),
    ("a\n%%\n \n%%\nb\n%%\n\n", ["a\n", "b\n"], [("empty", 3)]),
    ("", [], [("empty", 1)]),
    ("\n\n", [], [("empty", 1)]),
    ("a\n%%\n" + "b" * 31 + "\n%%\nc\n", ["a\n", "c\n"], [("too_long", 3)]),
    ("a\n%%\nb\n" + "b" * 29 + "\n" + "b" * 20 + "\n%%\nc\n", ["a\n", "c\n"], [("too_long", 3)]),
    ("a\n%%\n" + "b" * 31, ["a\n"], [("too_long", 3)]),
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("text, wanted, bad", SEPARATED)
def test_text_with_separators(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    text: str,
    wanted: list[str],
    bad: list[tuple[str, int]],
) -> None:
    monkeypatch.setattr(document, "MAX_DOCUMENT_BYTES", 30)
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    found = [(why, f"{path}: line {line}") for why, line in bad]
    assert read(path, separator="%%") == (wanted, found)


def test_bad_text_between_separators_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n%%\nb\n\xff\n%%\nc\n")
    assert read(path, separator="%%") == (["a\n", "c\n"], [("not_utf8", f"{path}: line 4")])


def every_kind(folder: Path) -> list[Path]:
    rng = random.Random(1)
    # Hardly packed, and longer than the pieces in which files are read.
    documents = [f"{i} {rng.randbytes(1500).hex()}" for i in range(150)]
    documents[20] = documents[90] = ""
    named = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet")
    paths = [write_rows(folder / name, documents) for name in named]
    text = "\n%%\n".join(documents[:70]).encode()
    paths += [folder / "e.txt", folder / "f.txt.gz"]
    paths[-2].write_bytes(text)
    paths[-1].write_bytes(gzip.compress(text))
    return paths


@pytest.mark.parametrize("separator", [None, "%%"])
def test_reading_resumes_after_any_document(tmp_path: Path, separator: str | None) -> None:
    paths = every_kind(tmp_path)
    if separator is None:  # an input of many files, or many of one
        paths = [tmp_path]
    items = items_of(*paths, separator=separator)
    assert len(items) > 600
    for i, (position, item) in enumerate(items):
        if isinstance(item, Document) and (i % 7 == 0 or i > len(items) - 5):
            at = Position(*json.loads(json.dumps(position)))  # as from the journal
            rest = items_of(*paths, separator=separator, start=at)
            told = [each[:2] for _, each in rest]  # text, or why and where
            wanted = [each[:2] for _, each in items[i + 1 :]]
            assert [each[0] for each in told] == [each[0] for each in wanted], position
            assert [e[1] for e in told if isinstance(e[0], str)] == [
                e[1] for e in wanted if isinstance(e[0], str)
            ]
