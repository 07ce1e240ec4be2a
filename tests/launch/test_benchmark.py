"""launch/benchmark.py, and the figures that this project claims."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from tests.conftest import REPOSITORY
from tests.launch.commands import run_command
from tests.ranks import free_port
from tests.small_run import SETTINGS, metrics_of

ALL_CORES = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
TEMPLATES = "--template ds_configs/zero0.json --template ds_configs/zero1.json"


def ratios(printed: str) -> dict[str, float]:
    """The last column of the table, by the first."""
    rows = re.findall(r"^(plain torch|ds_configs/\S+) .* ([\d.]+)$", printed, re.M)
    return {name: float(ratio) for name, ratio in rows}


@pytest.mark.heavy
def test_benchmark_prints_a_row_for_each_contestant(tmp_path: Path) -> None:
    words = " ".join(f"--set {setting}" for setting in SETTINGS)
    began = time.monotonic()
    shown = run_command(
        f"deepspeed --master_port {free_port()} launch/benchmark.py --steps 3 --warmup-steps 1 "
        f"--recipe recipes/quickstart.yaml {words} {TEMPLATES} --plain-torch",
        REPOSITORY,
        ALL_CORES,
    )
    seconds = time.monotonic() - began
    assert shown.returncode == 0, shown.stderr
    assert list(ratios(shown.stdout)) == [
        "plain torch",
        "ds_configs/zero0.json",
        "ds_configs/zero1.json",
    ]
    assert ratios(shown.stdout)["plain torch"] == 1.0
    assert "256 tokens a step" in shown.stdout
    assert "peak memory of rank 0" in shown.stdout
    start = re.search(
        r"^first step done ([\d.]+) s after the command, ([\d.]+) s of it its launcher$",
        shown.stdout,
        re.M,
    )
    assert start
    assert 1.0 < float(start[2]) < float(start[1]) < seconds


def test_benchmark_refuses_what_it_cannot_compare() -> None:
    muon = (
        "--set optimizer.name=muon --set optimizer.muon_lr=0.02 --set optimizer.muon_momentum=0.9"
    )
    for command, ranks, words in (
        ("--plain-torch", 2, "--plain-torch: with 2 ranks. Start it with one rank."),
        (
            f"--plain-torch {muon} --set optimizer.gradient_clipping=0",
            1,
            "--plain-torch: has AdamW, and the recipe muon. Leave it out.",
        ),
        ("--steps 0", 2, "--steps: must be at least 1"),
        ("--warmup-steps -1", 2, "--warmup-steps at least 0. Give more."),
    ):
        shown = run_command(
            f"python launch/benchmark.py --recipe recipes/quickstart.yaml {command}",
            REPOSITORY,
            ALL_CORES | {"WORLD_SIZE": str(ranks), "RANK": "0"},
        )
        assert shown.returncode == 2
        assert words in shown.stderr
        assert "Traceback" not in shown.stderr


@pytest.mark.benchmark
def test_the_engine_costs_little_over_plain_torch() -> None:
    shown = run_command(
        f"python launch/benchmark.py --recipe recipes/quickstart.yaml {TEMPLATES} --plain-torch "
        "--set batch.global_batch_tokens=4096 --set batch.micro_batch_size=32 "
        "--set schedule.total_tokens=4096000 --steps 60",
        REPOSITORY,
        ALL_CORES,
    )
    assert shown.returncode == 0, shown.stderr
    print(shown.stdout)
    assert ratios(shown.stdout)["ds_configs/zero0.json"] <= 1.05
    assert ratios(shown.stdout)["ds_configs/zero1.json"] <= 1.15


@pytest.mark.heavy(minutes=4)
def test_shakespeare_reaches_nanogpts_loss(tinyshakespeare: Path, tmp_path: Path) -> None:
    text = tinyshakespeare.read_text()
    cut = int(len(text) * 0.9)  # nanoGPT, data/shakespeare_char/prepare.py
    (tmp_path / "train.txt").write_text(text[:cut])
    (tmp_path / "validation.txt").write_text(text[cut:])
    prepare(
        Request(
            inputs=[tmp_path / "train.txt"],
            out=tmp_path / "data",
            tokenizer="bytes",
            validation=[tmp_path / "validation.txt"],
        )
    )
    shown = run_command(
        f"deepspeed --master_port {free_port()} launch/train.py --recipe recipes/shakespeare.yaml "
        f"--set data.path={tmp_path}/data --run-dir {tmp_path}/run",
        REPOSITORY,
        ALL_CORES,
    )
    assert shown.returncode == 0, shown.stderr
    losses = metrics_of(tmp_path / "run", "step", "validation_loss")
    assert losses[-1][0] == 2000
    assert losses[-1][1] <= 1.89
