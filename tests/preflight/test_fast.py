"""The checks that every run begins with, on one rank: cheap, and quiet when all is well."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt2_ds.preflight import every_rank, fast, rank_facts, run_folder
from gpt2_ds.preflight.fast import fast_checks
from gpt2_ds.preflight.rank_facts import RankFacts
from gpt2_ds.preflight.verdicts import failed
from tests.config.small_recipe import only_fault
from tests.small_run import small_plan


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_all_is_well(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fast_checks(small_plan("data/x", tmp_path / "run"), "")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.benchmark
def test_alone_it_takes_no_time(tmp_path: Path) -> None:
    plan = small_plan("data/x", tmp_path)
    began = time.perf_counter()
    fast_checks(plan, "")
    assert time.perf_counter() - began < 0.2


def test_little_room_is_only_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usage = run_folder.shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    plan = small_plan("data/x", tmp_path / "run")
    fast_checks(plan, "")
    said = capfd.readouterr().err
    assert said.startswith("warning: free disk: 100000 bytes for ")
    assert said.endswith(
        f" of checkpoints, on the disk of {tmp_path}/run. Make room, name another disk with "
        "--run-dir, or lower checkpoint.keep_last.\n"
    )
    fast_checks(plan, "", writes=False)
    assert capfd.readouterr().err == ""


def test_no_room_at_all_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = run_folder.shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    plan = small_plan("data/x", tmp_path / "run")
    message = only_fault(lambda: fast_checks(plan, ""))
    assert message.startswith("free disk: 0 bytes for ")
    assert message.endswith(f"{tmp_path}/run. Make room, or name another disk with --run-dir.")
    usage = usage._replace(total=0)  # of a mounted bucket, that knows none
    assert run_folder.room(plan).verdict == "warning"


def test_a_disk_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_folder.shutil, "disk_usage", refuse)
    assert run_folder.room(small_plan("data/x", tmp_path / "run")) == failed(
        "free disk",
        f"{tmp_path}/run: cannot look (Permission denied)",
        "Name a folder that you may write to with --run-dir.",
    )


def test_inputs_that_a_rank_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(plan: object) -> None:
        raise PermissionError(13, "Permission denied", "data/x/manifest.json")

    monkeypatch.setattr(every_rank, "open_inputs", refuse)
    fingerprint, (fault,) = every_rank._inputs(small_plan("data/x", tmp_path / "run"))
    assert fingerprint == ""
    assert str(fault) == (
        "data/x/manifest.json: cannot be read (Permission denied). Make it readable for this user "
        "on every machine."
    )


def test_what_is_there_already_needs_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan("data/x", tmp_path)
    (tmp_path / "checkpoints/step_00000001").mkdir(parents=True)
    held = tmp_path / "checkpoints/step_00000001/x.pt"
    held.write_bytes(b"x" * (run_folder.disk_bytes(plan) - 1000))
    usage = run_folder.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    assert run_folder.room(plan).verdict == "ok"
    held.write_bytes(b"x" * (run_folder.disk_bytes(plan) - 1001))
    assert run_folder.room(plan).verdict == "warning"


def test_a_model_that_no_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan("data/x", tmp_path)
    needed = 16 * plan.derived.n_parameters
    here = RankFacts.here(plan, "")

    def of(total: int, free: int) -> None:
        facts = replace(here, memory_bytes=total, free_memory_bytes=free)
        monkeypatch.setattr(RankFacts, "here", lambda plan, data: facts)

    of(needed - 1, needed - 1)
    message = only_fault(lambda: fast_checks(plan, ""))
    assert message.startswith(f"host memory: {here.host}: ")
    assert message.endswith(
        "Take a template of a higher ZeRO stage, more ranks, or a smaller model."
    )
    of(needed, 0)
    fast_checks(plan, "")


def test_another_recipe_template_or_code_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(*overrides: str, template: str = "zero0") -> str:
        plan = small_plan("data/x", tmp_path, *overrides, template=template)
        return RankFacts.here(plan, "").recipe

    assert len({recipe(), recipe(), recipe("seed=5"), recipe(template="zero1")}) == 3
    rank_facts._sources.cache_clear()
    before = rank_facts._sources()
    folder = tmp_path / "gpt2_ds"
    folder.mkdir()
    (folder / "x.py").write_text("1")
    monkeypatch.setattr(rank_facts, "_REPOSITORY", tmp_path)
    seen = {before}
    for text in ("1", "2"):
        (folder / "x.py").write_text(text)
        rank_facts._sources.cache_clear()
        seen.add(rank_facts._sources())
    rank_facts._sources.cache_clear()
    assert len(seen) == 3


def test_devices_that_deepspeed_hides_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_facts, "_NVIDIA_GPUS", tmp_path)
    for bus in range(4):
        (tmp_path / f"0000:0{bus}:00.0").mkdir()
    monkeypatch.delenv("CROSS_SIZE", raising=False)
    assert rank_facts._machine_devices(2) == 2  # Slurm gave this job two of them
    monkeypatch.setenv("CROSS_SIZE", "1")
    assert rank_facts._machine_devices(2) == 4
    assert rank_facts._machine_devices(0) == 0  # it trains on the CPU
    monkeypatch.setattr(rank_facts, "_NVIDIA_GPUS", tmp_path / "none")
    assert rank_facts._machine_devices(2) == 2


def test_nccl_is_compared_where_gpus_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    assert rank_facts.versions(on_gpu=True) == rank_facts.versions(False) | {"NCCL": "2.28.9"}


@pytest.mark.parametrize(
    "text, version",
    [
        # the second is of the open kernel module
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build",
            "580.82.07",
        ),
        ("", ""),
        (None, ""),
    ],
)
def test_the_driver_is_what_the_kernel_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, version: str
) -> None:
    monkeypatch.setattr(rank_facts, "_NVIDIA_DRIVER", tmp_path / "version")
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert rank_facts._driver() == version


def test_what_deepspeed_should_not_have_sent_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    (tmp_path / ".deepspeed_env").write_text("HF_TOKEN=abc123\n")
    plan = small_plan("data/x", tmp_path / "run")
    fast_checks(plan, "")
    assert capfd.readouterr().err == ""  # on one machine nothing is sent
    monkeypatch.setattr(fast, "nodes", lambda: 2)
    fast_checks(plan, "")
    said = capfd.readouterr().err
    assert said.startswith(f"warning: {tmp_path}/.deepspeed_env:1: sends HF_TOKEN, which looks")
    assert "abc123" not in said
