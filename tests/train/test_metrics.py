"""What a run reports, with an engine that only answers: the file, the line, the numbers."""

from __future__ import annotations

import io
import json
import re
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.launcher import rank
from gpt2_ds.plan.flops import flops_per_token
from gpt2_ds.train.checkpoint_manifest import complete_checkpoints
from gpt2_ds.train.metrics import Metrics, keep_metrics_until
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan

LINES = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "validation_loss": 4.5}]
LINES += [{"step": 3, "loss": 3.0}, {"step": 4, "loss": 2.0}]


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("step, n_lines", [(0, 0), (1, 1), (2, 3), (3, 4), (9, 5)])
def test_lines_of_later_steps_are_taken_off(tmp_path: Path, step: int, n_lines: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    keep_metrics_until(path, step)
    assert kept(path) == LINES[:n_lines]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("end", ['{"step": 2, "lo', "{", "7", "[]", '{"loss": 1}', '{"step": "x"}'])
def test_an_unfinished_last_line_is_taken_off(tmp_path: Path, end: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + end)
    keep_metrics_until(path, 5)
    assert path.read_text() == json.dumps(LINES[0]) + "\n"


def test_without_a_file_there_is_nothing_to_do(tmp_path: Path) -> None:
    keep_metrics_until(tmp_path / "metrics.jsonl", 5)
    assert list(tmp_path.iterdir()) == []


class Engine:
    """What Metrics asks of DeepSpeed's engine."""

    def __init__(self) -> None:
        self.events: list[tuple[str, float, int]] = []
        self.monitor = SimpleNamespace(write_events=self.events.extend)

    def get_global_grad_norm(self) -> float:
        return 0.25

    def fp16_enabled(self) -> bool:
        return False


def report(folder: Path) -> dict[str, Any]:
    """Two steps and a validation, then no number on the last rank; what each rank said and saw."""
    import gpt2_ds.train.metrics as module

    engine, plan = Engine(), small_plan(folder / "data", folder / "run", world_size=2)
    plan.run_dir.mkdir(exist_ok=True)
    if rank() == 0:  # an earlier process came to step 4, and its last checkpoint is of step 1
        lines = "".join(json.dumps(line) + "\n" for line in LINES)
        (plan.run_dir / "metrics.jsonl").write_text(lines)
    metrics = Metrics(plan, engine, 1)
    printed = io.StringIO()
    with redirect_stdout(printed):
        for _ in range(2):
            with metrics.waiting_for_data():
                time.sleep(0.2 + 0.1 * rank())
            metrics.step_done()
        with metrics.aside():
            time.sleep(0.5)
        metrics.log_step(2, torch.tensor(1.0 + rank()), 3e-4, None, {})
        module.device_title = lambda: "NVIDIA H100 80GB HBM3"  # type: ignore[assignment]
        metrics.step_done()
        metrics.log_step(3, torch.tensor(2.0), 3e-4, 0.5, {"web": 700, "books": 68})
        metrics.log_validation(3, {"web": 600.0, "books": 1000.0}, [3.0, 1.0])
        metrics.step_done()
        try:
            metrics.log_step(4, torch.tensor(float("nan") if rank() == 1 else 1.0), 3e-4, None, {})
            error = "none"
        except RunError as raised:
            error = str(raised)
        metrics.step_done()
        try:
            metrics.log_step(5, torch.tensor(1.0), 3e-4, float("inf"), {})
        except RunError as raised:
            error += f" | {raised}"
    return {"printed": printed.getvalue(), "error": error, "events": engine.events}


@pytest.mark.heavy
def test_what_is_reported(tmp_path: Path) -> None:
    first, second = run_ranks(report, 2, tmp_path, tmp_path)
    one, two, three, validation, fourth, fifth = kept(tmp_path / "run/metrics.jsonl")
    assert one == LINES[0]
    assert list(two) == [
        "step",
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens_seen",
        "tokens_per_second",
        "step_seconds",
        "data_wait_seconds",
        "peak_memory_bytes",
    ]
    assert (two["step"], two["loss"], two["learning_rate"]) == (2, 1.5, 3e-4)  # of both ranks
    assert (two["gradient_norm"], two["tokens_seen"]) == (0.25, 512)
    assert 0.3 <= two["data_wait_seconds"] < 0.45  # of the slower rank, a step
    assert 0.2 <= two["step_seconds"] < 0.5  # without what was done aside
    assert two["tokens_per_second"] == pytest.approx(256 / two["step_seconds"])
    assert 50e6 < two["peak_memory_bytes"] < 8e9

    plan = small_plan(tmp_path / "data", tmp_path / "run", world_size=2)
    work = flops_per_token(plan.derived.n_parameters, 2, 32, 32)
    expected = three["tokens_per_second"] * work / (2 * 989e12)
    assert three["mfu"] == pytest.approx(expected)
    assert three["gradient_norm"] == 0.5  # the one that was given
    assert (three["tokens_seen_web"], three["tokens_seen_books"]) == (700, 68)
    assert (validation["validation_loss_web"], validation["validation_loss_books"]) == (600, 1000)
    assert validation["validation_loss"] == 700.0  # by weight: three of four are web
    assert validation["validation_perplexity"] > 1e300  # a number still

    # JSON has no NaN and no Infinity.
    assert fourth["loss"] is None
    assert fifth["gradient_norm"] is None

    assert first["error"] == second["error"]
    assert first["error"] == (
        f"{tmp_path}/run: step 4: the loss is nan. The last checkpoint is untouched; lower "
        "optimizer.lr or look at the data of this step. | "
        f"{tmp_path}/run: step 5: the gradient norm is inf. The last checkpoint is untouched; "
        "lower optimizer.lr or look at the data of this step."
    )
    lines = first["printed"].splitlines()
    assert re.fullmatch(
        r"step 2/8  loss 1\.5000  lr 3\.00e-04  [\d,]+ tokens/s  \d:\d\d:\d\d left", lines[0]
    )
    assert re.fullmatch(
        r"step 3/8  loss 2\.0000  lr 3\.00e-04  [\d,]+ tokens/s  mfu 0\.\d{3}  \d:\d\d:\d\d left",
        lines[1],
    )
    assert re.fullmatch(
        r"validation after step 3: loss 700\.0000  perplexity \d+\.\d\d  web 600\.0000  "
        r"books 1000\.0000",
        lines[2],
    )
    assert second["printed"] == ""
    assert second["events"] == []
    assert ("train/loss", 1.5, 2) in first["events"]
    assert ("validation/loss", 700.0, 3) in first["events"]
    assert ("validation/loss_books", 1000.0, 3) in first["events"]
    assert ("train/tokens_seen_web", 700, 3) in first["events"]
    assert {name for name, _, step in first["events"] if step == 2} == {
        f"train/{name}" for name in two if name != "step"
    }


def diverge(data: Path, run_dir: Path) -> tuple[str, list[int]]:
    """What a run says whose loss is no number from step 2 on, and the steps that it saved."""
    from gpt2_ds.train.run import train

    plan = small_plan(
        data,
        run_dir,
        "optimizer.lr=1e30",
        "optimizer.gradient_clipping=0",
        "logging.interval_steps=100",
        "checkpoint.interval_steps=2",
    )
    try:
        train(plan, small_corpus(data))
    except RunError as error:
        return str(error), [manifest.step for _, manifest in complete_checkpoints(run_dir)]
    return "no error", []


@pytest.mark.heavy
def test_what_is_no_number_is_never_saved(tmp_path: Path) -> None:
    """However seldom the run logs."""
    ((error, saved),) = run_ranks(diverge, 1, tmp_path, small_dataset(tmp_path), tmp_path / "run")
    assert f"{tmp_path}/run: step 2: the loss is" in error
    assert saved == []


def both_norms(data: Path, folder: Path) -> None:
    from gpt2_ds.train.run import train

    for template in ("zero0", "zero1"):
        train(small_plan(data, folder / template, template=template), small_corpus(data))


@pytest.mark.heavy
def test_our_norm_at_stage_0_is_the_engines_at_stage_1(tmp_path: Path) -> None:
    """With several micro-steps: it is that of their sum."""
    run_ranks(both_norms, 1, tmp_path, small_dataset(tmp_path), tmp_path)
    ours, engines = (metrics_of(tmp_path / name, "gradient_norm") for name in ("zero0", "zero1"))
    assert len(ours) == len(engines) == 8
    assert [norm for (norm,) in ours] == pytest.approx([norm for (norm,) in engines], rel=1e-4)
