"""A DeepSpeed that this project was not tested with is refused, with the line to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from gpt2_ds.config import deepspeed_release
from gpt2_ds.config.deepspeed_release import (
    FIRST_UNTESTED,
    OLDEST,
    check_deepspeed,
    installed_deepspeed,
)
from tests.config.small_recipe import only_fault
from tests.conftest import REPOSITORY

INSTALL = 'Install a tested one: pip install "deepspeed>=0.19.8,<0.20".'
OLDER = "releases before 0.19.8 compute some runs wrong without an error"
NEWER = "0.20 and newer were not tested with this project"
REFUSED = {
    "0.19.7": OLDER,
    "0.19": OLDER,
    "0.9.5": OLDER,
    "0.18.9+cu124": OLDER,
    "0.20.0": NEWER,
    "0.20.0rc1": NEWER,
    "0.21": NEWER,
    "1.0.0": NEWER,
}


def install(monkeypatch: pytest.MonkeyPatch, release: str | None) -> None:
    def installed(name: str) -> str:
        assert name == "deepspeed"
        if release is None:
            raise deepspeed_release.PackageNotFoundError(name)
        return release

    monkeypatch.setattr(deepspeed_release, "version", installed)


def test_the_bounds_are_those_of_requirements() -> None:
    text = (REPOSITORY / "requirements.txt").read_text()
    assert re.findall(r"^deepspeed(\S+)", text, re.MULTILINE) == [f">={OLDEST},<{FIRST_UNTESTED}"]


def test_what_is_installed_here_is_accepted() -> None:
    assert installed_deepspeed() == version("deepspeed")
    check_deepspeed()


@pytest.mark.parametrize("release", ["0.19.8", "0.19.10", "0.19.9+cu13", None])
def test_the_tested_series_and_none_at_all(
    release: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, release)
    assert installed_deepspeed() == release
    check_deepspeed()


@pytest.mark.parametrize("release", REFUSED)
def test_another_release(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, release)
    assert only_fault(check_deepspeed) == (
        f"requirements.txt: deepspeed: {release} is installed; {REFUSED[release]}. {INSTALL}"
    )


@pytest.fixture
def with_release(tmp_path: Path) -> dict[str, str]:
    """An environment in which DeepSpeed 0.18.9 is found, and a torch that cannot be imported."""
    found = tmp_path / "deepspeed-0.18.9.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.9\n")
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"}
    kept = {key: value for key, value in os.environ.items() if key not in launched}
    return kept | {"PYTHONPATH": str(tmp_path)}


RECIPE = "--recipe recipes/quickstart.yaml"


def typed(words: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command, *arguments = words.split()
    return subprocess.run(
        [sys.executable, f"launch/{command}.py", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        f"train {RECIPE}",
        f"train {RECIPE} --dry-run",
        f"benchmark {RECIPE}",
        f"preflight {RECIPE}",
        "preflight --numerics",
    ],
)
def test_a_start_is_refused_before_torch_is_loaded(
    words: str, with_release: dict[str, str]
) -> None:
    done = typed(words, with_release)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: requirements.txt: deepspeed: 0.18.9 is installed; {OLDER}. {INSTALL}\n"
    )


def test_a_run_on_paper_needs_none(with_release: dict[str, str]) -> None:
    assert typed(f"plan show {RECIPE}", with_release).returncode == 0
    linted = typed(f"plan lint {RECIPE}", with_release)
    assert linted.returncode == 2
    assert linted.stdout.startswith("error: requirements.txt: deepspeed: 0.18.9 is installed; ")
