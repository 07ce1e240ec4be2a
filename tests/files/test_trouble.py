from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from gpt2_ds.files.trouble import FILE_TROUBLES, file_trouble, write_fault

AGAIN = "then give the same command again."
FIXES = {
    errno.ENOSPC: f"Make room on this disk, {AGAIN}",
    errno.EDQUOT: f"Make room within the quota, {AGAIN}",
    errno.EROFS: "Make the folder writable, or name another with --run-dir.",
    errno.EACCES: "Make the folder writable, or name another with --run-dir.",
    errno.EPERM: "Make the folder writable, or name another with --run-dir.",
    errno.EFBIG: f"Raise the limit on the size of a file, {AGAIN}",
    errno.EIO: f"See what the system says of this disk, {AGAIN}",
    errno.ESTALE: f"See whether the network disk is there, {AGAIN}",
}


@pytest.mark.parametrize("number", sorted(FILE_TROUBLES))
def test_each_trouble_of_a_file_has_a_fix(number: int) -> None:
    said = file_trouble(OSError(number, "words", "a/b"))
    assert said == f"a/b: words. {FIXES[number]}"


def test_trouble_without_a_file_or_of_another_kind() -> None:
    assert file_trouble(OSError("odd")) == "odd. Mend it, then give the same command again."


@pytest.mark.parametrize(
    "number, other, said",
    [
        (errno.EACCES, "", f"Make the folder writable, {AGAIN}"),
        (errno.EACCES, "--out", "Make the folder writable, or name another with --out."),
        (errno.ENOSPC, "--out", "Make room on this disk, or name another with --out."),
        (errno.ENOTDIR, "--out", "Name a folder that you may write to with --out."),
        (errno.ENOTDIR, "", f"Mend it, {AGAIN}"),
    ],
)
def test_what_cannot_be_written_has_a_fix(number: int, other: str, said: str) -> None:
    fault = write_fault(Path("a/b"), OSError(number, "words"), n_bytes=0, other=other)
    assert str(fault) == f"a/b: cannot be written (words). {said}"


def test_a_full_disk_is_said_with_numbers_where_they_are_known(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    said = str(write_fault(tmp_path / "x", full, n_bytes=12345))
    numbers = r"the disk is full: 12,345 bytes are needed, and [0-9,]+ are free\. "
    assert re.fullmatch(re.escape(f"{tmp_path}/x: ") + numbers + FIXES[errno.ENOSPC], said)
    for fault in (
        write_fault(tmp_path / "x", full),
        write_fault(tmp_path / "gone/x", full, n_bytes=12345),
    ):
        assert "/x: cannot be written (No space left on device). Make room on" in str(fault)
