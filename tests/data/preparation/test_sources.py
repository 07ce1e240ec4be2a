from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.preparation.document import Document
from gpt2_ds.data.preparation.reading import read_documents
from gpt2_ds.data.preparation.sources import Input, holds_rows
from tests.data.preparation.prepared_text import find


def names(found: Input) -> list[str]:
    return [path.name for path in found.files]


def test_a_pattern_is_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", ".d.jsonl", "deep/e.jsonl", "f.jsonl/g"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (found,) = find(f"{tmp_path}/*.jsonl")
    assert names(found) == ["a.jsonl", "b.jsonl"]
    assert (found.name, found.n_bytes) == (f"{tmp_path}/*.jsonl", 14)
    assert names(find(f"{tmp_path}/**/*.jsonl")[0]) == ["a.jsonl", "b.jsonl", "e.jsonl"]
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find("[ab].jsonl")[0].files] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "[ab].jsonl").write_text("")  # a name is a name first
    assert [str(path) for path in find("[ab].jsonl")[0].files] == ["[ab].jsonl"]
    with pytest.raises(UserError, match=r"input .*/\*.csv: no such file or folder. Name text"):
        find(f"{tmp_path}/*.csv")


@pytest.mark.parametrize(
    "name, are_rows",
    [
        ("x.jsonl", True),
        ("x.JSON.gz", True),
        ("x.ndjson.zst", True),
        ("x.txt.gz", False),
        ("x.gz", False),
        ("x.jsonl.txt", False),
    ],
)
def test_json_lines_by_name(name: str, are_rows: bool) -> None:
    assert holds_rows(Path(name)) is are_rows


def test_standard_input_is_one_stream() -> None:
    (found,) = find("-")
    assert found == Input("-")
    assert found.is_one_stream
    with pytest.raises(UserError, match=r"input -: - is part of the input - already. Name each on"):
        find("-", validation=["-"])


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input .*/x: no such file or folder. Name text files, JS"):
        find(tmp_path / "x")
    with pytest.raises(UserError, match="a folder without files"):
        find(tmp_path)
    for name, suffix in (("x.zip", ".zip"), ("x.tar.gz", ".tar"), ("x.arrow", ".arrow")):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=rf"{name}: {suffix} is not read. Unpack it to text"):
            find(tmp_path / name)


def test_a_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    message = r"[ab].txt is part of the input .* already. Name each once"
    with pytest.raises(UserError, match=message):
        find(tmp_path, tmp_path / "a.txt")
    with pytest.raises(UserError, match=message):
        find(tmp_path, validation=[tmp_path])
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(UserError, match=message):
        find(tmp_path)


def test_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="in/link: a link to a folder, which is not followed"):
        find(tmp_path / "in")
    (tmp_path / "in" / "link").unlink()
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"in/dangling: cannot be read \(No such file"):
        find(tmp_path / "in")


def test_the_standard_library() -> None:
    (found,) = find("python-stdlib")
    paths = {str(path.relative_to(sysconfig.get_path("stdlib"))) for path in found.files}
    assert {"os.py", "json/decoder.py"} <= paths
    folders = {part for name in paths for part in Path(name).parts[:-1]}
    assert not folders & {"site-packages", "dist-packages", "__pycache__", "test", "tests"}
    assert list(found.files) == sorted(found.files)
    assert found.lenient  # some files are empty
    items = [item for _, item in read_documents([found], text_field="text")]
    assert sum(isinstance(item, Document) for item in items) > 400
    assert len(items) == len(found.files)


def test_a_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(
        UserError, match=r"input python-stdlib: no .py files in .*Use a Python with"
    ):
        find("python-stdlib")
