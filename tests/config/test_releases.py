"""A release of DeepSpeed with wrong gradients is refused for the runs that it hits alone."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config import releases
from gpt2_ds.config.lint.rules import lint
from gpt2_ds.config.releases import WRONG_RELEASES, installed_deepspeed, numbers_of
from gpt2_ds.config.template_file import load_template
from tests.config.lint.test_rules import CPU, RIGHT, said
from tests.config.small_recipe import load_small
from tests.conftest import REPOSITORY

# The release before the mend, template and recipe that it hits, and others that it spares.
HIT = {
    "DeepSpeed #7718": ("0.18.2", {"stage": 2}, [], {"stage": 1}, []),
    "DeepSpeed #7707": (
        "0.18.2",
        {"stage": 3, "zero_hpz_partition_size": 2},
        [],
        {"stage": 3},
        [],
    ),
    "DeepSpeed #7898": ("0.18.7", {"stage": 3}, [], {"stage": 2}, []),
    "DeepSpeed #7965": (
        "0.18.9",
        {"stage": 2, "overlap_comm": True},
        [],
        {"stage": 2, "overlap_comm": False},
        [],
    ),
    "DeepSpeed #7967": (
        "0.18.9",
        {"stage": 2, "offload_optimizer": CPU},
        [],
        {"stage": 2, "offload_optimizer": CPU},
        ["batch.micro_batch_size=4"],
    ),
    "DeepSpeed #7982": (
        "0.18.9",
        {"stage": 3, "offload_optimizer": CPU},
        [],
        {"stage": 3},
        [],
    ),
    "DeepSpeed #7985": (
        "0.18.9",
        {"stage": 1},
        ["precision.dtype=bf16"],
        {"stage": 1},
        ["precision.dtype=fp32"],
    ),
    "DeepSpeed #8061": (
        "0.19.2",
        {"stage": 1, "overlap_comm": True},
        ["model.compile=true"],
        {"stage": 1, "overlap_comm": True},
        [],
    ),
}


@pytest.mark.parametrize("wrong", WRONG_RELEASES, ids=lambda wrong: wrong.source.split()[1])
def test_a_release_with_wrong_gradients(tmp_path: Path, wrong: Any) -> None:
    last, zero, overrides, spared, others = HIT[wrong.source]
    expected = (
        f"error: requirements.txt: DeepSpeed {last} {wrong.what} ({wrong.source}). Install "
        f"{wrong.mended} or newer: pip install -r requirements.txt."
    )
    # 16 sequences of micro-batches of 2 on 4 ranks: two micro-steps.
    assert expected in said(tmp_path, zero, *overrides, world_size=4, deepspeed=last)
    for release in (wrong.mended, RIGHT):
        said_then = said(tmp_path, zero, *overrides, world_size=4, deepspeed=release)
        assert not any(wrong.source in each for each in said_then)
    told = said(tmp_path, spared, *others, world_size=4, deepspeed=last)
    assert not any(wrong.source in each for each in told)


def test_a_release_before_the_fault_came_is_spared(tmp_path: Path) -> None:
    assert any("#7718" in each for each in said(tmp_path, {"stage": 2}, deepspeed="0.17.6"))
    assert not any("#7718" in each for each in said(tmp_path, {"stage": 2}, deepspeed="0.17.5"))


@pytest.mark.parametrize(
    "older, newer", [("0.9.5", "0.19.0"), ("0.19.2", "0.19.10"), ("", "0.1"), ("0.18.9", "0.19")]
)
def test_releases_are_compared_by_their_numbers(older: str, newer: str) -> None:
    assert numbers_of(older) < numbers_of(newer)


def test_the_installed_release_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_deepspeed() == version("deepspeed")
    path = REPOSITORY / "ds_configs/zero2.json"
    monkeypatch.setattr(releases, "version", lambda name: {"deepspeed": "0.18.2"}[name])
    found = lint(load_small(tmp_path), load_template(path), str(path), 2)
    assert [finding.source for finding in found] == ["DeepSpeed #7718", "DeepSpeed #7965"]

    def missing(name: str) -> str:
        raise releases.PackageNotFoundError(name)

    monkeypatch.setattr(releases, "version", missing)
    assert installed_deepspeed() is None
    assert lint(load_small(tmp_path), load_template(path), str(path), 2) == []
