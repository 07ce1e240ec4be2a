"""A file of a checkpoint: every byte is there and on the disk, however large it is."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
import torch

from gpt2_ds.checkpoint import file as checkpoint_file
from gpt2_ds.checkpoint.file import save_state, trouble
from gpt2_ds.files.heartbeat import Heartbeat

MOST_BYTES = 1000  # that the system takes at once here; Linux: 0x7ffff000


def test_a_tensor_larger_than_one_write_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system writes part of what it is given, as Linux does beyond 2 GiB."""
    tensor, beats, write = torch.arange(5000), [], os.write
    heartbeat = Heartbeat(lambda doing, alone: beats.append(doing)).of_main_thread("")
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:MOST_BYTES]))
    save_state({"x": tensor}, tmp_path / "a.pt", heartbeat)
    assert torch.equal(torch.load(tmp_path / "a.pt")["x"], tensor)
    assert len(beats) > 40  # 40,000 bytes: every part was told of


def test_what_is_written_reaches_the_disk_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, at = tmp_path / "a.pt", []
    monkeypatch.setattr(checkpoint_file, "PIECE_BYTES", 1000)
    monkeypatch.setattr(checkpoint_file, "SYNC_BYTES", 10_000)
    true_one = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (at.append(path.stat().st_size), true_one(file)))
    save_state({"x": torch.arange(5000)}, path)
    assert len(at) == 5
    assert all(0 < after - before < 12_000 for before, after in itertools.pairwise(at))
    assert at[-1] == path.stat().st_size


def test_the_systems_own_error_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_state({"x": torch.arange(5)}, tmp_path / "a.pt")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.faults
def test_a_tensor_beyond_two_gibibytes(tmp_path: Path) -> None:
    tensor = torch.zeros(300_000_000, dtype=torch.float64)
    tensor[::7_000_000] = torch.arange(43, dtype=torch.float64)
    save_state({"x": tensor}, tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", mmap=True)["x"]
    assert torch.equal(found, tensor)


def test_a_disk_that_is_gone_does_not_hide_what_was_the_matter(tmp_path: Path) -> None:
    gone = tmp_path / "gone/step_00000003.tmp"
    assert trouble(RuntimeError("unexpected pos 64 vs 0\nand so on"), gone) == (
        f"{gone}: could not be written: unexpected pos 64 vs 0. The checkpoints before it are "
        "untouched. Mend it, then give the same command again."
    )
