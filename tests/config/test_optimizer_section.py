"""Muon's own keys go with Muon alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.recipe_file import dump_recipe, load_recipe
from gpt2_ds.config.same_run import fingerprint
from tests.config.small_recipe import faults_of, load_small

LR = "It is: Peak learning rate of Muon, for example 0.02; it rises and falls as lr does."
MOMENTUM = "It is: Decay rate of Muon's momentum, for example 0.95."
MUON = ["optimizer.name=muon", "optimizer.muon_lr=0.02", "optimizer.muon_momentum=0.9"]


def test_muon_needs_both(tmp_path: Path) -> None:
    found = faults_of(lambda: load_small(tmp_path, "optimizer.name=muon"))
    given = "is empty, must be given where optimizer.name is muon."
    assert [str(fault) for fault in found] == [
        f"{tmp_path}/small.yaml: optimizer.muon_lr: {given} {LR}",
        f"{tmp_path}/small.yaml: optimizer.muon_momentum: {given} {MOMENTUM}",
    ]


def test_adamw_needs_neither(tmp_path: Path) -> None:
    found = faults_of(lambda: load_small(tmp_path, *MUON[1:]))
    assert [str(fault) for fault in found] == [
        f"--set: optimizer.muon_{key}: is {value}, must be left out where optimizer.name is adamw. "
        f"{meaning}"
        for key, value, meaning in (("lr", 0.02, LR), ("momentum", 0.9, MOMENTUM))
    ]


def test_an_unknown_name_is_said_once(tmp_path: Path) -> None:
    (fault,) = faults_of(lambda: load_small(tmp_path, "optimizer.name=sgd", *MUON[1:]))
    assert str(fault).startswith("--set: optimizer.name: is 'sgd', must be 'adamw' or 'muon'.")


@pytest.mark.parametrize("overrides", [[], MUON])
def test_what_is_written_is_read(tmp_path: Path, overrides: list[str]) -> None:
    recipe = load_small(tmp_path, *overrides).recipe
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path).recipe == recipe


def test_runs_with_adamw_from_before_there_was_muon_go_on(tmp_path: Path) -> None:
    """The hash is that of this recipe at the commit before the keys came."""
    adamw, muon = load_small(tmp_path).recipe, load_small(tmp_path, *MUON).recipe
    assert fingerprint(adamw, 0) == (
        "99d4340cb57d5a58443fb43b68627578715a8402a51be585923c81fc2c6eb4c0"
    )
    assert fingerprint(muon, 0) != fingerprint(adamw, 0)
    other = load_small(tmp_path, *MUON, "optimizer.muon_lr=0.03").recipe
    assert fingerprint(other, 0) != fingerprint(muon, 0)
