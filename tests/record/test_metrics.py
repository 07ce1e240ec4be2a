"""What a run reports, with an engine that only answers: the file, the line, the numbers."""

from __future__ import annotations

import io
import json
import math
import re
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2_ds.hosts.launcher import rank
from gpt2_ds.plan.flops import flops_per_token
from gpt2_ds.record.metrics import Metrics
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan

LINES = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "validation_loss": 4.5}]
LINES += [{"step": 3, "loss": 3.0}, {"step": 4, "loss": 2.0}]


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    """Two steps and a validation, then what is not finite; what each rank said and saw."""
    import gpt2_ds.record.metrics as module

    engine, plan = Engine(), small_plan(folder / "data", folder / "run", world_size=2)
    plan.run_dir.mkdir(exist_ok=True)
    if rank() == 0:  # an earlier process came to step 4, and its last checkpoint is of step 1
        lines = "".join(json.dumps(line) + "\n" for line in LINES)
        (plan.run_dir / "metrics.jsonl").write_text(lines)
    metrics = Metrics(plan, engine)
    validated = []
    for step in (2, 1):
        metrics.resume_from(step)
        validated.append(metrics.validated(step))
    printed = io.StringIO()
    with redirect_stdout(printed):
        for _ in range(2):
            with metrics.waiting_for_data():
                time.sleep(0.2 + 0.1 * rank())
            metrics.step_done()
        with metrics.outside_steps():
            time.sleep(3.0)
        metrics.log_step(2, 1.5, 3e-4, None, {}, 0)
        module.device_title = lambda: "NVIDIA H100 80GB HBM3"  # type: ignore[assignment]
        metrics.step_done()
        metrics.log_step(3, 2.0, 3e-4, 0.5, {"web": 700, "books": 68}, 0)
        metrics.log_validation(3, {"web": 600.0, "books": 1000.0}, [3.0, 1.0], 2.5)
        metrics.step_done()
        metrics.log_step(4, math.nan, 3e-4, None, {}, 1)
        metrics.step_done()
        metrics.log_step(5, 1.0, 3e-4, math.inf, {}, 2)
    return {"printed": printed.getvalue(), "validated": validated, "events": engine.events}


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
        "skipped_updates",
        "global_batch_tokens",
        "tokens_seen",
        "tokens_per_second",
        "step_seconds",
        "data_wait_seconds",
        "peak_memory_bytes",
    ]
    assert (two["step"], two["loss"], two["learning_rate"]) == (2, 1.5, 3e-4)
    assert (two["gradient_norm"], two["tokens_seen"]) == (0.25, 512)
    assert 0.3 <= two["data_wait_seconds"] < 0.6  # of the slower rank, a step
    assert 0.2 <= two["step_seconds"] < 1.5  # without what was done outside steps
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
    assert validation["validation_seconds"] == 2.5

    # JSON has no NaN and no Infinity.
    assert fourth["loss"] is None
    assert fifth["gradient_norm"] is None
    skipped = [line["skipped_updates"] for line in (two, three, fourth, fifth)]
    assert skipped == [0, 0, 1, 2]

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
    assert "loss nan  " in lines[3]
    assert "  mfu 0." in lines[4]
    assert "  skipped updates: 2  0:" in lines[4]
    assert "skipped" not in lines[0]
    assert first["validated"] == second["validated"] == [True, False]
    assert second["printed"] == ""
    assert second["events"] == []
    assert ("train/loss", 1.5, 2) in first["events"]
    assert ("validation/loss", 700.0, 3) in first["events"]
    assert ("validation/loss_books", 1000.0, 3) in first["events"]
    assert ("train/tokens_seen_web", 700, 3) in first["events"]
    assert {name for name, _, step in first["events"] if step == 2} == {
        f"train/{name}" for name in two if name != "step"
    }


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
