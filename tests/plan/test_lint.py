"""What `plan.py lint` prints, and how it ends."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from gpt2_ds.config.errors import EXIT_DONE, EXIT_WRONG_INPUT
from gpt2_ds.plan.lint import add_arguments, lint_recipe
from tests.config.small_recipe import only_fault, small_file


def run(*words: str) -> int:
    parser = ArgumentParser()
    add_arguments(parser)
    return lint_recipe(parser.parse_args(words))


def test_nothing_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_file(tmp_path)
    assert run("--recipe", str(recipe), "--gpus", "4") == EXIT_DONE
    shown = capsys.readouterr().out
    assert shown.startswith(f"nothing found: {recipe} with ds_configs/zero0.json on 4 ranks, Deep")


@pytest.mark.parametrize("word", ["4", "4xH100-80", "4xA100-40"])
def test_gpus_may_be_given_as_fit_takes_them(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--recipe", str(small_file(tmp_path)), "--gpus", word) == EXIT_DONE
    assert " on 4 ranks, " in capsys.readouterr().out


def test_warnings_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--recipe", str(small_file(tmp_path)), "--template", "ds_configs/zero3_hpz.json")
    assert run(*words) == EXIT_DONE
    assert capsys.readouterr().out.startswith("warning: ds_configs/zero3_hpz.json: zero_optimiz")


def test_errors_of_all_kinds_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(small_file(tmp_path))
    assert run("--recipe", recipe, "--set", "precision.dtype=bf16", "--gpus", "3") == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"error: {recipe}: batch.global_batch_tokens: 1024 tokens are 16 sequ")
    assert second.startswith("error: ds_configs/zero0.json: zero_optimization.stage: is 0 with")


def test_a_template_that_is_wrong_in_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "t.json"
    template.write_text('{"zero_optimization": {"stage": 1, "mics_shard_size": 8}, "zzz": 1}')
    words = ("--recipe", str(small_file(tmp_path)), "--template", str(template))
    assert run(*words) == EXIT_WRONG_INPUT
    gone, unknown = capsys.readouterr().out.splitlines()
    assert gone.startswith(f"error: {template}: zero_optimization.mics_shard_size: is gone from")
    assert unknown.startswith(f"error: {template}: zzz: no such key")


def test_the_number_of_ranks_is_checked(tmp_path: Path) -> None:
    words = ("--recipe", str(small_file(tmp_path)), "--gpus", "0")
    assert only_fault(lambda: run(*words)) == "--gpus 0: is below 1. Give at least 1."


def test_gpus_that_are_no_number(tmp_path: Path) -> None:
    said = only_fault(lambda: run("--recipe", str(small_file(tmp_path)), "--gpus", "H100"))
    assert said.startswith("--gpus H100: is not a count of GPUs. For example: --gpus 8, or 8xH100")
