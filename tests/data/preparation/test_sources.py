from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.preparation import sources
from gpt2_ds.data.preparation.sources import OnBad, find_inputs, read_documents


def read(
    path: Path | str, on_bad: OnBad = "error", text_field: str = "text"
) -> tuple[list[str], dict[str, int]]:
    skipped: Counter[str] = Counter()
    documents = read_documents(
        find_inputs([path]), text_field=text_field, on_bad=on_bad, skipped=skipped
    )
    return [document.text for document in documents], dict(skipped)


def test_a_folder_is_recursed_and_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "c/rows.jsonl", ".git/x", "c/.hidden", "B.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "c" / "rows.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 3}')
    assert read(tmp_path)[0] == ["B.md", "a/z.txt", "b.txt", "one", "two"]
    assert find_inputs([tmp_path])[0].n_bytes == 4 + 7 + 5 + 41


def test_text_comes_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf a\r\nb\n\x00\xc3\xa9")
    assert read(tmp_path / "x.txt")[0] == [" a\r\nb\n\x00é"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.JSON"
    path.write_bytes(b'\xef\xbb\xbf{"body": "a\\nb"}\r\n{"body": "\\ud83d\\ude42 \\ud800"}\n')
    assert read(path, text_field="body")[0] == ["a\nb", "🙂 \ud800"]


BAD_ROWS = [
    ("not_json", b"{oops", r"line 2: not JSON \(Expecting .*\). Give one JSON object a line"),
    ("not_json", b"[" * 100_000, r"line 2: not JSON \(maximum recursion"),
    ("not_an_object", b"[1]", "line 2: a JSON list, not an object"),
    ("no_text_field", b'{"body": "x"}', "line 2: no field 'text'; there are 'body'. Name the fi"),
    ("no_text_field", b"{}", "line 2: no field 'text'; there are none"),
    ("not_a_string", b'{"text": null}', "line 2: the field 'text' is null, not a string. Name"),
    ("empty", b'{"text": " \\n"}', "line 2: an empty document. Leave it out. Or use --on-bad sk"),
    ("not_utf8", b'{"text": "\xe9"}', r"line 2: not UTF-8 \(byte 0xe9: invalid continuation"),
]


@pytest.mark.parametrize("why, row, message", BAD_ROWS)
def test_bad_rows(tmp_path: Path, why: str, row: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + row + b'\n{"text": "b"}\n')
    with pytest.raises(UserError, match=rf"x.jsonl: {message}"):
        read(path)
    assert read(path, "skip") == (["a", "b"], {why: 1})


@pytest.mark.parametrize(
    "why, data, message",
    [
        ("not_utf8", b"a\nb\nc\xff", r"x.txt: line 3: not UTF-8 \(byte 0xff: invalid start byte\)"),
        ("empty", b"", "x.txt: an empty document"),
    ],
)
def test_bad_files(tmp_path: Path, why: str, data: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.txt")
    assert read(tmp_path / "x.txt", "skip") == ([], {why: 1})


@pytest.mark.parametrize(
    "name, message",
    [
        ("x.txt", "x.txt: 11 bytes, and a document has at most 10. Cut it into documents"),
        ("x.jsonl", "x.jsonl: line 1: more than 10 bytes, and a document has at most 10"),
    ],
)
def test_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 10)
    (tmp_path / name).write_text("x" * 11)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, "skip")


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input .*/x: no such file or folder. Name a text file"):
        find_inputs([tmp_path / "x"])
    with pytest.raises(UserError, match="a folder without files"):
        find_inputs([tmp_path])
    (tmp_path / "x.parquet").touch()
    with pytest.raises(UserError, match=r"x.parquet: .parquet is not read. Unpack it"):
        find_inputs([tmp_path])


def test_a_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    message = r"[ab].txt is part of the input .* already. Name each file once"
    with pytest.raises(UserError, match=message):
        find_inputs([tmp_path, tmp_path / "a.txt"])
    with pytest.raises(UserError, match=message):
        find_inputs([tmp_path], others=find_inputs([tmp_path]))
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(UserError, match=message):
        find_inputs([tmp_path])


def test_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="in/link: a link to a folder, which is not followed"):
        find_inputs([tmp_path / "in"])
    (tmp_path / "in" / "link").unlink()
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"in/dangling: cannot be read \(No such file"):
        find_inputs([tmp_path / "in"])


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    found = find_inputs([tmp_path])
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a.txt: cannot be read \(No such file or directory\)"):
        list(read_documents(found, text_field="text", on_bad="skip", skipped=Counter()))


def test_the_standard_library() -> None:
    (found,) = find_inputs(["python-stdlib"])
    names = {str(path.relative_to(sysconfig.get_path("stdlib"))) for path in found.files}
    assert {"os.py", "json/decoder.py"} <= names
    folders = {part for name in names for part in Path(name).parts[:-1]}
    assert not folders & {"site-packages", "dist-packages", "__pycache__", "test", "tests"}
    assert list(found.files) == sorted(found.files)
    documents, skipped = read("python-stdlib")  # no error, though some files are empty
    assert len(documents) > 400
    assert len(documents) + skipped.get("empty", 0) == len(found.files)


def test_a_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(
        UserError, match=r"input python-stdlib: no .py files in .*Use a Python with"
    ):
        find_inputs(["python-stdlib"])
