"""The files that say what a run is: whole or not there, and without secrets."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.record import run_directory
from gpt2_ds.record.run_directory import environment, git_commit, write_run_files, write_text
from tests.small_run import small_plan


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_text(path, "a long first text")
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]

    def killed(*paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "never finished")
    assert path.read_text() == "é\n"


def test_no_environment_variable_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "open-sesame-4711")
    monkeypatch.setenv("HF_TOKEN", "open-sesame-4712")
    plan = small_plan(tmp_path / "data", tmp_path / "run")
    write_run_files(plan, {"train_batch_size": 8}, ["here", "there"])
    for path in (tmp_path / "run").iterdir():
        assert "open-sesame" not in path.read_text(), path
    found = json.loads((tmp_path / "run/environment.json").read_text())
    assert set(found) == {"python", "platform", "packages", "git_commit", "hosts"}
    assert found["hosts"] == ["here", "there"]


def test_what_is_written_is_what_was_used(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "data", tmp_path / "deep/run")
    config = plan.deepspeed(cpu_adam=False)
    write_run_files(plan, config, [""])
    assert json.loads((plan.run_dir / "deepspeed.json").read_text()) == config
    assert load_recipe(plan.run_dir / "recipe.yaml").recipe == plan.recipe
    names = {"deepspeed.json", "environment.json", "recipe.yaml"}
    assert {p.name for p in plan.run_dir.iterdir()} == names


def test_the_versions_are_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed
    import pydantic

    monkeypatch.setattr(run_directory, "_PACKAGES", ("deepspeed", "pydantic", "no-such-package"))
    assert environment([])["packages"] == {
        "deepspeed": deepspeed.__version__,
        "pydantic": pydantic.__version__,
        "no-such-package": "not installed",
    }


def test_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "_REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() == "unknown"

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *who, "-C", str(tmp_path), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_commit() == "unknown"  # no commit yet
    (tmp_path / "x").write_text("1")
    git("add", "x")
    git("commit", "-q", "--no-verify", "-m", "first")
    assert git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "new").write_text("not the repository's")
    assert git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "x").write_text("2")
    assert git_commit() == git("rev-parse", "HEAD") + "+changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"  # no git
