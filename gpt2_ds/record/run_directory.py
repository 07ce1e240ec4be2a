"""The files of a run that say what it is; written before its first step."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt2_ds.config.recipe_file import dump_recipe
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.files.durable_file import write_durably

_REPOSITORY = Path(__file__).resolve().parents[2]
RUN_FILES = ("recipe.yaml", "deepspeed.json", "environment.json")
"""What `write_run_files` writes."""

_PACKAGES = ("torch", "deepspeed", "numpy", "tiktoken", "pydantic", "tensorboard")


def write_run_files(plan: RunPlan, deepspeed_config: dict[str, Any], hosts: list[str]) -> None:
    """Write recipe.yaml, deepspeed.json and environment.json into the run directory.

    Args:
        plan: the run.
        deepspeed_config: exactly what `deepspeed.initialize` gets.
        hosts: name of each rank's host, by rank.
    """
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    write_text(plan.run_dir / "deepspeed.json", json.dumps(deepspeed_config, indent=2) + "\n")
    write_text(plan.run_dir / "environment.json", json.dumps(environment(hosts), indent=2) + "\n")
    # Last: its presence makes the folder a run.
    write_text(plan.run_dir / "recipe.yaml", dump_recipe(plan.recipe))


def environment(hosts: list[str]) -> dict[str, Any]:
    """Versions, commit and hosts. No environment variable: they may hold secrets."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": package_versions(),
        "git_commit": git_commit(),
        "hosts": hosts,
    }


def package_versions() -> dict[str, str]:
    """Installed versions of what a run depends on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_commit() -> str:
    """The repository's commit, with "+changes" when files differ; "unknown" without git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(_REPOSITORY), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_text(path: Path, text: str) -> None:
    """Write a small file whole."""
    write_durably(path, [text.encode()])
