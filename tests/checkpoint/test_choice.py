"""Which checkpoint a command takes, and which run may resume from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    check_resumable,
    choose_checkpoint,
    step_name,
)
from gpt2_ds.config.recipe_file import LoadedRecipe
from gpt2_ds.config.same_run import fingerprint
from tests.checkpoint.saved_files import flip, manifest_of, refusal, save
from tests.config.small_recipe import load_small


def test_the_newest_or_the_asked_one_is_chosen(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert choose_checkpoint(tmp_path, None)[1].step == 3
    path, manifest = choose_checkpoint(tmp_path, 2)
    assert (path.name, manifest.step) == (step_name(2), 2)


def test_there_is_none(tmp_path: Path) -> None:
    for step in (None, 3):
        assert refusal(lambda step=step: choose_checkpoint(tmp_path / "no", step)) == (
            f"--run {tmp_path}/no: holds no complete checkpoint. "
            "Train first: deepspeed launch/train.py --recipe recipes/quickstart.yaml."
        )


def test_there_is_none_of_this_step(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 6)
    assert refusal(lambda: choose_checkpoint(tmp_path, 4)) == (
        "--step 4: no checkpoint of this step. There are: 6, 3."
    )


def test_a_damaged_one_is_named_and_the_one_before_it_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2) / "b.pt")
    assert choose_checkpoint(tmp_path, None)[1].step == 1
    said = capsys.readouterr()
    damaged = tmp_path / "checkpoints/step_00000002/b.pt"
    assert said.err == f"warning: {damaged}: damaged; this checkpoint is skipped\n"
    assert said.out == ""  # the sample goes there
    assert refusal(lambda: choose_checkpoint(tmp_path, 2)) == (
        "--step 2: its checkpoint is damaged. Choose another step."
    )
    assert str(damaged) in capsys.readouterr().err
    flip(tmp_path / "checkpoints/step_00000001/a.pt")
    assert refusal(lambda: choose_checkpoint(tmp_path, None)) == (
        f"--run {tmp_path}: every checkpoint is damaged. Restore a copy."
    )


@pytest.mark.parametrize("where", ["newest", "asked"])
def test_a_damaged_manifest_is_named_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    save(tmp_path, 1)
    damaged = save(tmp_path, 2) / MANIFEST
    flip(damaged)
    if where == "newest":
        assert choose_checkpoint(tmp_path, None)[1].step == 1
    else:
        assert refusal(lambda: choose_checkpoint(tmp_path, 2)) == (
            "--step 2: its checkpoint is damaged. Choose another step."
        )
    said = capsys.readouterr().err
    assert said == f"warning: {damaged}: damaged; this checkpoint is skipped\n"


def test_no_step_but_damaged_ones(tmp_path: Path) -> None:
    flip(save(tmp_path, 2) / MANIFEST)
    assert refusal(lambda: choose_checkpoint(tmp_path, 1)) == (
        "--step 1: no checkpoint of this step. There are: none."
    )


def resumable(
    loaded: LoadedRecipe,
    stored: LoadedRecipe | None = None,
    data_fingerprint: str = "d" * 64,
    saved_hash: str = "",
) -> None:
    """Resume from a checkpoint with one recipe in it, or with a hash alone."""
    known = saved_hash or fingerprint(loaded.recipe, 256)
    check_resumable(
        Path("step"),
        manifest_of(1, {}, recipe_fingerprint=known, dtype="fp32"),
        stored=stored,
        loaded=loaded,
        data_fingerprint=data_fingerprint,
    )


def test_the_same_job_may_go_on(tmp_path: Path) -> None:
    loaded = load_small(tmp_path)
    resumable(loaded)
    resumable(loaded, stored=loaded, saved_hash="r" * 64)  # the recipe itself says more


def test_another_recipe(tmp_path: Path) -> None:
    for overrides, dtype in ((["seed=2"], "fp32"), (["precision.dtype=bf16"], "bf16")):
        loaded = load_small(tmp_path, *overrides)
        now = fingerprint(loaded.recipe, 256)[:12]
        saved = fingerprint(load_small(tmp_path).recipe, 256)
        assert refusal(lambda loaded=loaded, saved=saved: resumable(loaded, saved_hash=saved)) == (
            f"step: recipe_fingerprint: written by another recipe ({saved[:12]}, fp32) than this "
            f"one ({now}, {dtype}). Train with the recipe of this run, or use another --run-dir."
        )


def test_another_recipe_is_in_the_checkpoint(tmp_path: Path) -> None:
    stored, loaded = load_small(tmp_path), load_small(tmp_path, "seed=2")
    file = tmp_path / "small.yaml"
    assert refusal(lambda: resumable(loaded, stored)) == (
        f"{file}: seed: this run began with 1, and {file} now gives 2. Set it back, or start a new "
        "run with --run-dir runs/NAME."
    )


def test_other_data(tmp_path: Path) -> None:
    loaded = load_small(tmp_path)
    assert refusal(lambda: resumable(loaded, data_fingerprint="e" * 64)) == (
        "step: data_fingerprint: this run has read dddddddddddd, and the recipe's data now is "
        "eeeeeeeeeeee. Point data.path or data.sources at the data of this run, in its order; or "
        "use another --run-dir."
    )


def test_a_copied_checkpoint_is_complete(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert choose_checkpoint(tmp_path / "b", 1)[1].step == 1
