"""What comparing the ranks' weights costs at gpt2_124m."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.ranks import run_ranks


def seconds_of_a_check(folder: Path, stage: str, dtype: str) -> dict[str, float]:
    """Median seconds of one comparison (right after an update, and again before the next)."""
    from gpt2_ds.config.derive import model_fields
    from gpt2_ds.config.run_plan import resolve_run
    from gpt2_ds.model import GPT2Config
    from gpt2_ds.parallel.engine import build_engine
    from gpt2_ds.parallel.process_group import host_group
    from gpt2_ds.parallel.replicas import Replicas, replicated

    plan = resolve_run(
        REPOSITORY / "recipes/gpt2_124m.yaml",
        world_size=2,
        template_file=REPOSITORY / f"ds_configs/{stage}.json",
        overrides=[f"precision.dtype={dtype}", "model.compile=false"],
        run_dir=folder,
    )
    engine = build_engine(
        GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)),
        plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}},
        seed=1,
    )
    ids = torch.arange(64)[None]  # a step makes Adam's moments, and gathers the small weights
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(engine(ids, shift_labels=ids, return_logits=False).loss)
    engine.step()
    replicas, seconds = Replicas(engine, host_group()), []
    for _ in range(7):
        began = time.perf_counter()
        replicas.remember()
        assert replicas.check() == []
        seconds.append(time.perf_counter() - began)
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in replicated(engine))
    engine.destroy()
    return {"seconds": median(seconds), "megabytes": size / 1e6}


@pytest.mark.benchmark
@pytest.mark.parametrize("stage, dtype", [("zero0", "fp32"), ("zero1", "bf16"), ("zero3", "bf16")])
def test_a_comparison_costs_little(stage: str, dtype: str, tmp_path: Path) -> None:
    found = run_ranks(seconds_of_a_check, 2, tmp_path, tmp_path / "run", stage, dtype)
    seconds = max(by_rank["seconds"] for by_rank in found)
    print(
        f"\ncomparing gpt2_124m on 2 ranks at {stage}, {dtype} ({found[0]['megabytes']:.1f} MB a "
        f"rank): {seconds:.3f} s"
    )
    assert seconds < 3.0  # every health.replica_check_interval_steps: 100 steps, and at each save
