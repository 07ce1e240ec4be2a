"""What launch/checkpoints.py prints, deletes and refuses."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2_ds.checkpoint import commands as checkpoint_commands
from gpt2_ds.checkpoint.commands import leftovers, list_checkpoints, prune, reshard, verify
from gpt2_ds.checkpoint.manifest import MANIFEST, complete_checkpoints, step_name
from gpt2_ds.checkpoint.retention import delete
from gpt2_ds.config.errors import RunError
from gpt2_ds.config.recipe_file import dump_recipe
from gpt2_ds.record.run_lock import RunLock
from tests.checkpoint.saved_files import FILES, contents, flip, refusal, save
from tests.small_run import small_plan

NONE = (
    "holds no complete checkpoint. "
    "Train first: deepspeed launch/train.py --recipe recipes/quickstart.yaml."
)


def run_of(folder: Path, *steps: int, losses: dict[int, float] | None = None) -> Path:
    """A run of small checkpoints, whose recipe keeps the newest 2 and the best."""
    run = folder / "run"
    run.mkdir()
    settings = ("checkpoint.keep_last=2", "checkpoint.keep_every_steps=0")
    (run / "recipe.yaml").write_text(
        dump_recipe(small_plan(folder / "data", run, *settings).recipe)
    )
    for step in steps:
        save(run, step, created="2024-05-06T07:08:09+00:00")
    lines = [{"step": step, "validation_loss": loss} for step, loss in (losses or {}).items()]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def steps(run: Path) -> list[int]:
    return [manifest.step for _, manifest in complete_checkpoints(run)]


def test_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, 2, 10, losses={2: 3.25, 4: 1.0, 10: 4.5})
    save(run, 6, {"big": bytes(2_345_678)}, zero_stage=0, dtype="fp32", world_size=8)
    flip(save(run, 7) / MANIFEST)
    save(run, 11).rename(run / "checkpoints/step_00000011.tmp")
    save(run, 12).rename(run / "checkpoints/step_00000012.damaged")
    assert list_checkpoints(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(" {2,}", line.strip()) for line in lines] == [
        "step|tokens|ranks|stage|dtype|GB|created|validation loss".replace("|", "  ").split("  "),
        ["10", "2,560", "2", "3", "bf16", "0.000", "2024-05-06T07:08:09+00:00", "4.5000", "newest"],
        ["step_00000007: damaged: manifest.json is not what was saved"],
        ["6", "1,536", "8", "0", "fp32", "0.002"],
        ["2", "512", "2", "3", "bf16", "0.000", "2024-05-06T07:08:09+00:00", "3.2500", "best"],
        ["step_00000011.tmp: left over; launch/checkpoints.py prune deletes it"],
        ["step_00000012.damaged: left over; launch/checkpoints.py prune deletes it"],
    ]


def test_the_newest_may_be_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_checkpoints(run_of(tmp_path, 2, losses={2: 3.25})) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 3.2500  newest, best")


@pytest.mark.parametrize("command", [list_checkpoints, lambda run: verify(run, None)])
def test_where_nothing_is(tmp_path: Path, command: Callable[[Path], int]) -> None:
    assert refusal(lambda: command(tmp_path / "no")) == f"--run {tmp_path}/no: {NONE}"


def test_leftovers_alone_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1).rename(tmp_path / "checkpoints/step_00000001.tmp")
    assert list_checkpoints(tmp_path) == 0
    assert "step_00000001.tmp: left over" in capsys.readouterr().out


def test_verifying(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, 1, 2, 3)
    assert verify(run, None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{run}/checkpoints/{step_name(step)}: 5 files, 0.000 GB, as they were saved"
        for step in (3, 2, 1)
    ]
    flip(run / "checkpoints" / step_name(2) / "b.pt")
    (run / "checkpoints" / step_name(2) / "deep/d").unlink()
    flip(run / "checkpoints" / step_name(1) / MANIFEST)
    assert verify(run, None) == 1
    assert capsys.readouterr().out.splitlines() == [
        lines[0],
        f"{run}/checkpoints/{step_name(2)}/b.pt: damaged",
        f"{run}/checkpoints/{step_name(2)}/deep/d: damaged",
        f"{run}/checkpoints/{step_name(1)}/{MANIFEST}: damaged",
    ]
    assert [verify(run, step) for step in (3, 2, 1)] == [0, 1, 1]
    save(run, 0)
    assert verify(run, None) == 1  # though the last one that is read is right
    assert refusal(lambda: verify(run, 9)) == (
        "--step 9: no checkpoint of this step. There are: 3, 2, 0."
    )


def test_verifying_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, {"a": bytes(1_000_000), "b": bytes(3_000_000)})
    assert verify(tmp_path, None) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert verify(tmp_path, None) == 0
    *_, shown, cleared, end = capsys.readouterr().err.split("\r")
    speed = r"in [\d.,]+ s \([\d.,]+ MB/s\), \d+ s left"
    assert re.fullmatch(rf" 25%\|.*\| step_00000001: 1\.0 of 4\.0 MB {speed}", shown)
    assert cleared.strip() == end == ""


def test_pruning_by_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, 1, 2, 3, 4, 5, losses={2: 1.0, 4: 2.0})
    checkpoints = run / "checkpoints"
    (checkpoints / "step_00000009.tmp").mkdir()
    (checkpoints / "step_00000008.damaged-17").mkdir()
    (checkpoints / "notes").mkdir()
    flip(save(run, 6) / MANIFEST)
    before = contents(run)
    gone = [step_name(1), step_name(3), "step_00000008.damaged-17", "step_00000009.tmp"]
    assert prune(run, None, None, dry_run=True) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f"{checkpoints / name}: would be deleted" for name in gone),
        "would stay: 5, 4, 2",
    ]
    assert contents(run) == before
    assert prune(run, None, None, dry_run=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f"{checkpoints / name}: deleted" for name in gone),
        "kept: 5, 4, 2",
    ]
    assert steps(run) == [5, 4, 2]
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "notes",
        *(step_name(step) for step in (2, 4, 5, 6)),
    ]


@pytest.mark.parametrize(
    "keep_last, keep_every, left",
    [(1, None, [6, 2]), (None, 3, [6, 5, 3, 2]), (1, 4, [6, 4, 2]), (9, None, [6, 5, 4, 3, 2, 1])],
)
def test_pruning_by_other_numbers(
    tmp_path: Path, keep_last: int | None, keep_every: int | None, left: list[int]
) -> None:
    run = run_of(tmp_path, 1, 2, 3, 4, 5, 6, losses={2: 1.0})
    assert prune(run, keep_last, keep_every, dry_run=False) == 0
    assert steps(run) == left


def test_pruning_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, 2, 3, 4)
    for words, message in (
        ((0, None), "--keep-last: 0 is below 1. Give 1 or more."),
        ((None, -1), "--keep-every: -1 is below 0. Give 0 or more."),
    ):
        assert refusal(lambda words=words: prune(run, *words, dry_run=False)) == message
    with RunLock(run):
        message = refusal(lambda: prune(run, None, None, dry_run=False))
        assert message.startswith(f"{run}: is in use by process {os.getpid()} on ")
        assert prune(run, None, None, dry_run=True) == 0
    damaged = run / "checkpoints" / step_name(4) / "b.pt"
    flip(damaged)
    assert refusal(lambda: prune(run, None, None, dry_run=False)) == (
        f"{damaged}: damaged, and this checkpoint is the newest. Nothing is deleted: older ones "
        "may be needed. Restore it, or delete its folder."
    )
    assert steps(run) == [4, 3, 2, 1]
    for step in (1, 2, 3, 4):
        flip(run / "checkpoints" / step_name(step) / MANIFEST)
    (run / "checkpoints/step_00000009.tmp").mkdir()
    before = contents(run / "checkpoints")  # run.lock beside it holds the time
    assert refusal(lambda: prune(run, None, None, dry_run=False)) == (
        f"--run {run}: holds no complete checkpoint. Nothing is deleted: restore a copy."
    )
    assert contents(run / "checkpoints") == before
    assert refusal(lambda: prune(tmp_path / "no", None, None, dry_run=False)).endswith(NONE)
    assert not (tmp_path / "no").exists()


def test_a_damaged_newest_is_no_matter_when_none_is_to_go(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, 2)
    flip(run / "checkpoints" / step_name(2) / "b.pt")
    (run / "checkpoints/step_00000009.tmp").mkdir()
    assert prune(run, None, None, dry_run=False) == 0
    assert (steps(run), leftovers(run)) == ([2, 1], [])


def test_what_cannot_be_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, 1, 2, 3)

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_commands, "delete", refused)
    assert refusal(lambda: prune(run, None, None, dry_run=False), RunError) == (
        f"{run}/checkpoints/{step_name(1)}: cannot be deleted: Permission denied."
    )


def test_what_was_quarantined_and_is_right_is_not_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was read while its disk failed."""
    run = run_of(tmp_path, 1)
    whole, damaged = (run / f"checkpoints/{step_name(step)}.damaged" for step in (6, 7))
    for step, path in ((6, whole), (7, damaged)):
        save(run, step).rename(path)
    flip(damaged / "b.pt")
    assert prune(run, None, None, dry_run=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{whole}: stays: every file is what was saved. Rename it to {step_name(6)} to resume",
        f"{damaged}: deleted",
        "kept: 1",
    ]
    assert leftovers(run) == [whole]


def test_links_are_not_followed(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, 2, 3)
    mine = save(tmp_path / "mine", 1)
    (run / "checkpoints/step_00000007.tmp").symlink_to(mine)
    (run / "checkpoints" / step_name(1) / "link").symlink_to(mine)
    assert prune(run, None, None, dry_run=False) == 0
    assert leftovers(run) == []
    assert steps(run) == [3, 2]
    assert len(contents(mine)) == len(FILES) + 1


def test_what_is_half_deleted_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)
    save(tmp_path, 2).rename(path.with_name(f"{path.name}.tmp"))  # in the way

    def killed(folder: Path) -> None:
        if folder.joinpath(MANIFEST).read_text().count('"step": 1'):
            raise KeyboardInterrupt
        whole(folder)

    whole = __import__("shutil").rmtree
    monkeypatch.setattr("gpt2_ds.checkpoint.retention.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        delete(path)
    assert complete_checkpoints(tmp_path) == []
    assert [path.name for path in leftovers(tmp_path)] == ["step_00000001.tmp"]
    delete(tmp_path / "not there")


def test_resharding_a_damaged_or_missing_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(save(tmp_path, 1) / "b.pt")
    assert refusal(lambda: reshard(tmp_path, 1, tmp_path / "out")) == (
        "--step 1: its checkpoint is damaged. Choose another step."
    )
    save(tmp_path, 2)  # its files are no pickles
    message = refusal(lambda: reshard(tmp_path, None, tmp_path / "out"))
    assert "a.pt: not a file as torch.save writes it" in message
    assert not (tmp_path / "out").exists()
