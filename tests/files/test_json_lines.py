"""Lines of JSON: what is read of a file that is no such file. More in tests/record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_ds.files.json_lines import append_json_line, read_json_lines
from tests.conftest import REPOSITORY


def test_only_the_lines_with_a_key_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\r\n{"b": {"a": 2}}\n{"c": "a"}\n{"a": null}')
    assert list(read_json_lines(path, holding="a")) == [
        (b'{"a": 1}\n', {"a": 1}),
        (b'{"a": null}\n', {"a": None}),
    ]


def test_what_is_no_file_has_no_lines(tmp_path: Path) -> None:
    """A device has no end, a folder no lines."""
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "none"):
        assert list(read_json_lines(path)) == [], path


def test_a_line_that_never_ends_is_not_held_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(100 << 20)
        file.seek(0, 2)
        file.write(b'\n{"a": 1}\n')
    code = f"""
from pathlib import Path
from gpt2_ds.files.json_lines import read_json_lines
print([values for _, values in read_json_lines(Path({str(tmp_path)!r}) / "a.jsonl")])
print(*[line for line in Path("/proc/self/status").open() if line.startswith("VmHWM")])
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    lines, peak = done.stdout.splitlines()[:2]
    assert lines == "[{'a': 1}]"
    assert int(peak.split()[1]) < 60_000  # kB


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """JSON has no word for it; nothing is written then."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json_line(tmp_path / "a.jsonl", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []
