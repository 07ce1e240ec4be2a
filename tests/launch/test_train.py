"""The train command through the `deepspeed` launcher."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from tests.conftest import REPOSITORY
from tests.launch.commands import run_command
from tests.ranks import free_port
from tests.small_run import SETTINGS, metrics_of, small_dataset

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.heavy(minutes=2)
def test_the_same_command_goes_on_and_then_says_that_all_is_done(tmp_path: Path) -> None:
    words = " ".join(f"--set {setting}" for setting in SETTINGS)
    command = (
        f"deepspeed --master_port {free_port()} --num_gpus 2 launch/train.py "
        f"--recipe recipes/quickstart.yaml {words} "
        f"--set data.path={small_dataset(tmp_path)} --run-dir {tmp_path}/runs/small"
    )
    first = run_command(f"{command} --max-steps 5", REPOSITORY, ENVIRONMENT)
    assert first.returncode == 0, first.stderr
    assert "stopped after step 5, as asked" in first.stdout
    second = run_command(command, REPOSITORY, ENVIRONMENT)
    assert second.returncode == 0, second.stderr
    assert "resuming from step 5" in second.stdout
    assert "is complete" in second.stdout
    third = run_command(command, REPOSITORY, ENVIRONMENT)
    assert third.returncode == 0, third.stderr
    assert "tokens/s" not in third.stdout  # nothing was trained
    assert "is complete" in third.stdout
    steps = metrics_of(tmp_path / "runs/small", "step", "loss")
    assert [step for step, _ in steps] == list(range(1, 9))
    refused = run_command(
        f"{command} --set optimizer.lr=1e-2".replace("--num_gpus 2", ""), REPOSITORY, ENVIRONMENT
    )
    assert refused.returncode == 2, refused.stderr
    assert "optimizer.lr: this run began with 0.003" in refused.stderr
    other_size = run_command(command.replace("--num_gpus 2", ""), REPOSITORY, ENVIRONMENT)
    assert other_size.returncode == 0, other_size.stderr
    assert "written by 2 ranks at ZeRO stage" in other_size.stdout
    assert "is complete" in other_size.stdout
    for shown in (refused, other_size):
        assert "Traceback" not in shown.stderr


@pytest.mark.heavy
def test_a_missing_hostfile_is_refused_where_deepspeed_would_train_alone(tmp_path: Path) -> None:
    shown = run_command(
        f"deepspeed --hostfile {tmp_path}/hosts launch/train.py --recipe recipes/quickstart.yaml",
        REPOSITORY,
        ENVIRONMENT,
    )
    assert shown.returncode == 2
    assert f"--hostfile {tmp_path}/hosts: cannot be read" in shown.stderr


@pytest.mark.heavy(minutes=2)
def test_gpt2_124m_takes_three_steps_on_real_text(
    gpt2_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache))
    prepare(
        Request(
            inputs=["python-stdlib"],
            out=tmp_path / "data",
            tokenizer="gpt2",
            validation_fraction=0.05,
        )
    )
    small = ("data.seq_length=128", "batch.global_batch_tokens=512", "batch.micro_batch_size=2")
    # 16-bit matrix products are far slower on a CPU without hardware for them.
    small += ("precision.dtype=fp32",)
    words = " ".join(f"--set {word}" for word in (*small, "evaluation.tokens=256"))
    shown = run_command(
        f"deepspeed --master_port {free_port()} launch/train.py "
        f"--recipe recipes/gpt2_124m.yaml {words} --max-steps 3 "
        f"--set data.path={tmp_path}/data --set logging.interval_steps=1 "
        f"--set evaluation.sample_tokens=5 --run-dir {tmp_path}/run",
        REPOSITORY,
        {name: value for name, value in ENVIRONMENT.items() if name != "OMP_NUM_THREADS"},
    )
    assert shown.returncode == 0, shown.stderr
    losses = metrics_of(tmp_path / "run", "step", "loss")
    assert [step for step, _ in losses] == [1, 2, 3]
    assert abs(losses[0][1] - math.log(50257)) < 0.3
    waits = metrics_of(tmp_path / "run", "data_wait_seconds", "step_seconds")
    assert all(wait < 0.01 * step for wait, step in waits)
    config = json.loads((tmp_path / "run/deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == 1
