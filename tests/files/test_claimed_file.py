from __future__ import annotations

import errno
import fcntl
import re
from pathlib import Path

import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.files.claimed_file import allocate, claimed, write_all
from gpt2_ds.files.trouble import writing


def test_one_at_a_time_has_it_and_it_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "x.tmp"
    path.write_bytes(b"left by a dead process")
    with claimed(path) as mine:
        assert mine is not None
        with claimed(path) as other:
            assert other is None
        assert path.exists()
    assert not path.exists()


def test_what_was_renamed_stays_and_the_name_is_free(tmp_path: Path) -> None:
    path = tmp_path / "x.tmp"
    with claimed(path) as mine:
        assert mine is not None
        write_all(mine, path, b"content")
        path.rename(tmp_path / "x")
        with claimed(path) as other:
            assert other is not None
            write_all(other, path, b"other")
            path.rename(tmp_path / "y")
            path.write_bytes(b"a third one")
    assert (tmp_path / "x").read_bytes() == b"content"
    assert (tmp_path / "y").read_bytes() == b"other"
    assert path.read_bytes() == b"a third one"


@pytest.mark.parametrize("replaced", [False, True])
def test_what_goes_between_opening_and_locking_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    path = tmp_path / "x.tmp"
    lock = fcntl.flock

    def late(file: int, how: int) -> None:
        path.unlink()
        if replaced:
            path.write_bytes(b"of another process")
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claimed(path) as file:
        assert file is None
    assert path.exists() == replaced


def test_room_is_taken_at_once_and_what_was_there_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.tmp"
    path.write_bytes(b"x" * 10_000)
    with claimed(path) as file:
        assert file is not None
        for n_bytes in (5_000, 0, 4_096):
            allocate(file, path, n_bytes)
            assert path.read_bytes() == bytes(n_bytes)
        assert path.stat().st_blocks >= 8  # not a hole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_numbers(tmp_path: Path, number: int) -> None:
    with pytest.raises(RunError) as error:
        with writing(tmp_path / "x", 70):
            raise OSError(number, "full")
    advice = {errno.ENOSPC: "on this disk", errno.EDQUOT: "within the quota"}[number]
    said = (
        rf"{tmp_path}/x: the disk is full: 70 bytes are needed, and [0-9,]+ are free\. "
        rf"Make room {advice}, then give the same command again\."
    )
    assert re.fullmatch(said, str(error.value))


def test_a_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"/none/x\.tmp: cannot be written \(No such file or direct"):
        with claimed(tmp_path / "none" / "x.tmp"):
            pass
    assert list(tmp_path.iterdir()) == []
