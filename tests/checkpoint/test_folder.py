"""Folders of checkpoints that are in the way: deleted where they may be, quarantined where not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gpt2_ds.checkpoint import folder as checkpoint_folder
from gpt2_ds.checkpoint.folder import quarantine, remove_partial


def test_what_cannot_be_deleted_is_in_the_way_only_of_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On NFS a folder with a file that someone has open stays."""
    busy, other = tmp_path / "step_00000003.tmp", tmp_path / "step_00000006.tmp"
    for path in (busy, other):
        path.mkdir()
    plain = checkpoint_folder.delete

    def delete(path: Path) -> None:
        if path == busy:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path / ".nfs01"))
        plain(path)

    monkeypatch.setattr(checkpoint_folder, "delete", delete)
    remove_partial(tmp_path, needed=other)
    assert list(tmp_path.iterdir()) == [busy]
    assert capsys.readouterr().err == (
        f"warning: {busy}: cannot be deleted (Directory not empty); it is left there\n"
    )
    with pytest.raises(OSError, match="Directory not empty"):
        remove_partial(tmp_path, needed=busy)


def test_damaged_checkpoints_are_quarantined_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000003"
    quarantine(folder)  # is not there
    for number in range(3):
        folder.mkdir()
        (folder / "number").write_text(str(number))
        quarantine(folder)
    assert {path.parent.name: path.read_text() for path in tmp_path.glob("*/number")} == {
        "step_00000003.damaged": "0",
        "step_00000003.damaged2": "1",
        "step_00000003.damaged3": "2",
    }
    folder.symlink_to(tmp_path / "nowhere")
    quarantine(folder)
    assert (tmp_path / "step_00000003.damaged4").readlink() == tmp_path / "nowhere"
    assert not folder.is_symlink()
