"""The comparison of two commits' losses finds what differs; its runs are runs of this project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_ds.config.run_plan import resolve_run
from tests import losses
from tests.losses import RUNS, SETTINGS, LossesError, Rows, Run, differences, losses_of, rows_of

SMALL = {
    ("plain", 1, "loss"): "5.4609",
    ("plain", 1, "gradient_norm"): "2.66",
    ("plain", 10, "loss"): "4.8",
    ("ramp", 2, "loss"): "5.3",
}


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, []),
        ({("plain", 1, "loss"): "5.46090001"}, ["plain: step 1: loss: 5.4609 -> 5.46090001"]),
        (
            {("plain", 10, "loss"): "null", ("plain", 1, "gradient_norm"): "2.67"},
            ["plain: step 1: gradient_norm: 2.66 -> 2.67"],
        ),
        (
            {("plain", 10, "loss"): "4.9", ("ramp", 2, "loss"): "5.4"},
            ["plain: step 10: loss: 4.8 -> 4.9", "ramp: step 2: loss: 5.3 -> 5.4"],
        ),
        ({("plain", 2, "new_key"): "1"}, ["plain: step 2: new_key: nothing -> 1"]),
        ({("more", 1, "loss"): "5.0"}, ["more: step 1: loss: nothing -> 5.0"]),
    ],
)
def test_the_first_difference_of_each_run_is_named(changed: Rows, said: list[str]) -> None:
    assert differences(SMALL, SMALL | changed) == said


def test_a_run_that_is_gone_is_a_difference() -> None:
    left = {row: value for row, value in SMALL.items() if row[0] == "plain"}
    assert differences(SMALL, left) == ["ramp: step 2: loss: 5.3 -> nothing"]


def test_numbers_have_all_digits_and_times_are_left_out() -> None:
    trained = {"step": 1, "loss": 5.460972309112549, "step_seconds": 0.1, "tokens_seen_code": 192}
    validated = {"step": 1, "validation_loss": None, "validation_seconds": 0.2}
    assert rows_of("plain", f"{json.dumps(trained)}\n{json.dumps(validated)}\n") == {
        ("plain", 1, "loss"): "5.460972309112549",
        ("plain", 1, "tokens_seen_code"): "192",
        ("plain", 1, "validation_loss"): "null",
    }


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_runs_are_accepted(run: Run) -> None:
    for ranks, template, last_step in run.jobs:
        plan = resolve_run(
            losses.REPOSITORY / "recipes/quickstart.yaml",
            world_size=ranks,
            template_file=losses.REPOSITORY / f"ds_configs/{template}.json",
            overrides=[*SETTINGS, *run.settings],
            run_dir=Path("run"),
            max_steps=last_step,
        )
        assert plan.last_step == last_step
    assert plan.derived.steps == last_step
    assert len({each.name for each in RUNS}) == len(RUNS)


def test_a_file_is_used_again_where_nothing_else_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(_: Path, run: Run) -> Rows:
        trained.append(run.name)
        return {(run.name, 1, "loss"): "5.460972309112549"}

    monkeypatch.setattr(losses, "train", train)
    monkeypatch.setattr(losses, "prepare_data", lambda folder: None)
    monkeypatch.setattr(losses, "RUNS", RUNS[:1])
    file = tmp_path / "losses/head.txt"
    first = losses_of("HEAD", file, reuse=True)
    assert (
        losses_of("HEAD", file, reuse=True) == first == {(*trained, 1, "loss"): "5.460972309112549"}
    )
    losses_of("HEAD", file, reuse=False)
    assert len(trained) == 2
    monkeypatch.setattr(losses, "circumstances", lambda: {"torch": "another"})
    losses_of("HEAD", file, reuse=True)
    assert len(trained) == 3


@pytest.mark.parametrize(
    "changed, code, said",
    [
        ({}, 0, f"identical: 4 numbers of {len(RUNS)} runs\n"),
        (
            {("ramp", 2, "loss"): "0.0"},
            1,
            "not identical, HEAD -> working tree:\nramp: step 2: loss: 5.3 -> 0.0\n",
        ),
    ],
)
def test_what_the_command_says(
    changed: Rows,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def of(tree: str, file: Path, *, reuse: bool) -> Rows:
        assert reuse == (file.name != "working_tree.txt")
        return SMALL if reuse else SMALL | changed

    monkeypatch.setattr(losses, "losses_of", of)
    assert losses.main(["--base", "HEAD"]) == code
    assert capsys.readouterr().out == said


def test_no_such_commit(capsys: pytest.CaptureFixture[str]) -> None:
    assert losses.main(["--base", "no-such-commit"]) == 1
    assert "failed: git rev-parse --verify 'no-such-commit^{commit}'" in capsys.readouterr().err


def test_a_failed_command_is_named_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(LossesError) as failed:
        losses.execute([sys.executable, "-c", "import sys; sys.exit('the reason')"], tmp_path)
    output, command = str(failed.value).split("\nfailed: ")
    assert output == "the reason\n"
    assert command == f"{sys.executable} -c 'import sys; sys.exit('\"'\"'the reason'\"'\"')'"


def test_the_working_tree_is_what_is_not_committed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    git("init")
    (tmp_path / ".gitignore").write_text("ignored*\n")
    for name in ("ignored_later", "old"):
        (tmp_path / name).write_text("as committed")
    git("add", "--force", ".")
    git("commit", "-m", "first")
    for name in ("old", "new", "ignored"):
        (tmp_path / name).write_text("as it is")
    git("add", "new")
    monkeypatch.setattr(losses, "REPOSITORY", tmp_path)
    tree = losses.working_tree()
    assert git("ls-tree", "--name-only", tree).split() == [
        ".gitignore",
        "ignored_later",
        "new",
        "old",
    ]
    assert git("show", f"{tree}:old") == "as it is"
    assert git("status", "--short").splitlines() == ["A  new", " M old"]  # the index is as it was


@pytest.mark.heavy
def test_a_run_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = Run("resumed", ((1, "zero0", 1), (1, "zero0", 2)))
    monkeypatch.setattr(losses, "RUNS", (resumed,))
    rows = losses_of(losses.working_tree(), tmp_path / "losses.txt", reuse=False)
    assert [step for _, step, key in rows if key == "loss"] == [1, 2]
    assert [step for _, step, key in rows if key == "gradient_norm"] == [1, 2]
    assert [step for _, step, key in rows if key == "validation_loss"] == [1, 2]
