from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from gpt2_ds.data.format.manifest import read_manifest
from tests.data.preparation.prepared_text import REPOSITORY, documents_of

LONG_BYTES = 400 * 2**20
MIB = b"x" * 2**20
PEAK_BYTES = 300 * 2**20  # far less than the document, let alone copies of it

PREPARE = """
import sys
from pathlib import Path
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.data.format.tokenizer import load_tokenizer

prepare(Request(inputs=[sys.argv[1]], out=Path(sys.argv[2]), tokenizer="bytes", on_bad="skip",
                validation_fraction=0, document_separator=sys.argv[3] or None))
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""


def write_long(path: Path, before: bytes, after: bytes) -> None:
    """A file with something long in the middle, packed as its name says."""
    if path.suffix == ".zst":
        file: Any = pyarrow.CompressedOutputStream(str(path), "zstd")
    elif path.suffix == ".gz":
        file = gzip.GzipFile(path, "wb", compresslevel=1)
    else:
        file = path.open("wb")
    with file:
        file.write(before)
        for _ in range(LONG_BYTES // len(MIB)):
            file.write(MIB)
        file.write(after)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name, separator, before, after, wanted, line",
    [
        ("x.jsonl", "", b'{"text": "a"}\n{"text": "', b'"}\n{"text": "b"}\n', ["a", "b"], 2),
        ("x.jsonl.gz", "", b'{"text": "a"}\n', b'\n{"text": "b"}\n', ["a", "b"], 2),
        ("x.jsonl.zst", "", b'{"text": "a"}\n', b'\n{"text": "b"}\n', ["a", "b"], 2),
        ("x.txt", "%%", b"a\n%%\nb\n", b"\n%%\nc\n", ["a\n", "c\n"], 3),
    ],
)
def test_a_giant_is_found_without_holding_it(
    tmp_path: Path,
    name: str,
    separator: str,
    before: bytes,
    after: bytes,
    wanted: list[str],
    line: int,
) -> None:
    path, out = tmp_path / name, tmp_path / "out"
    write_long(path, before, after)
    words = [sys.executable, "-c", PREPARE, str(path), str(out), separator]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < PEAK_BYTES
    assert documents_of(out, "train") == wanted
    source = read_manifest(out).source
    assert source is not None
    assert source.skipped["too_long"].first == (f"{path}: line {line}",)


@pytest.mark.heavy
def test_a_giant_text_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_long(tmp_path / "in" / "x.txt.gz", b"", b"")
    (tmp_path / "in" / "y.txt").write_text("y")
    words = [sys.executable, "-c", PREPARE, str(tmp_path / "in"), str(tmp_path / "out"), ""]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < PEAK_BYTES
    assert documents_of(tmp_path / "out", "train") == ["y"]
