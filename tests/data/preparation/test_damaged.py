"""Files that break off, are something else, or go away."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.preparation.document import Bad, Document
from gpt2_ds.data.preparation.reading import read_documents
from tests.data.preparation.prepared_text import find, rows_of, write_rows
from tests.data.preparation.read_text import items_of, pipe_in, read


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_a_file_that_breaks_off(tmp_path: Path, name: str) -> None:
    rng = random.Random(2)
    documents = [rng.randbytes(1500).hex() for _ in range(300)]
    path = write_rows(tmp_path / name, documents)
    data = path.read_bytes()
    if name.endswith("parquet"):  # its end says where all is: a hole in the middle
        half = len(data) // 2
        path.write_bytes(data[:half] + bytes(1000) + data[half + 1000 :])
        unit = "row"
    else:
        path.write_bytes(data[: len(data) // 2])
        unit = "line"
    (tmp_path / "y.jsonl").write_text('{"text": "after"}\n')
    good, bad = read(path, tmp_path / "y.jsonl")
    assert good[-1] == "after"
    assert 50 < len(good) < 160
    assert good[:-1] == documents[: len(good) - 1]
    assert bad == [("damaged", f"{path}: {unit} {len(good)}")]
    for position, item in items_of(path):  # the same, wherever reading begins
        if isinstance(item, Document):
            rest = [each for _, each in items_of(path, start=position)]
            assert rest[-1][:2] == bad[0]
            last = position
    assert [each[:2] for _, each in items_of(path, start=last)] == bad


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.txt.gz", "x.jsonl.zst", "x.parquet"])
def test_a_file_that_is_something_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"hello, hello, hello")
    ((_, bad),) = items_of(path)
    assert isinstance(bad, Bad)
    unit = "row" if name.endswith("parquet") else "line"
    assert (bad.why, bad.where) == ("damaged", f"{path}: {unit} 1")
    assert bad.what.startswith("damaged: it breaks off here (")
    assert bad.fix == "Fetch the file again."


def test_standard_input_resumes_where_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows_of([str(i) * 3000 for i in range(100)])
    pipe_in(data, monkeypatch)
    items = items_of("-")
    for i in (0, 50, 99):
        pipe_in(data, monkeypatch)
        rest = items_of("-", start=items[i][0])
        assert [each[0] for _, each in rest] == [each[0] for _, each in items[i + 1 :]]
    message = r"standard input: its first \d+ bytes are not those that were read before. Give"
    pipe_in(data.replace(b"7", b"8", 1), monkeypatch)
    with pytest.raises(UserError, match=message):
        items_of("-", start=items[50][0])
    pipe_in(data[:5000], monkeypatch)
    with pytest.raises(UserError, match=message):
        items_of("-", start=items[50][0])


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl.zst", "a.parquet"):
        write_rows(tmp_path / name, ["a"])
        found = find(tmp_path / name)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: cannot be read \(No such file or direc"):
            list(read_documents(found, text_field="text"))


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl.gz", ["a"])

    def broken(self: object, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gzip.GzipFile, "read1", broken)
    with pytest.raises(UserError, match=r"a.jsonl.gz: cannot be read \(Input/output error\)"):
        items_of(path)
