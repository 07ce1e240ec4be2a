"""What a run needs, against numbers of others and against a real checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.train.preflight.need import Memory, checkpoint_bytes, disk_bytes, model_states
from tests.conftest import REPOSITORY


def plan(stage: str, ranks: int, *overrides: str) -> RunPlan:
    return resolve_run(
        REPOSITORY / "recipes/gpt2_124m.yaml",
        world_size=ranks,
        template_file=REPOSITORY / f"ds_configs/{stage}.json",
        overrides=overrides,
    )


@pytest.mark.parametrize(
    "stage, ranks, device_bytes, host_bytes",
    [
        # ZeRO's 2 + 2 + 12 bytes (section 3.1), and 4 for gradients that add up in fp32.
        ("zero1", 1, 20, 0),
        ("zero1", 4, 2 + 6 + 12 / 4, 0),
        ("zero2", 4, 2 + 6 / 4 + 12 / 4, 0),
        ("zero3", 4, 20 / 4, 0),
        ("zero3_offload", 4, 6 / 4, (2 + 12) / 4),
    ],
)
def test_model_states(stage: str, ranks: int, device_bytes: float, host_bytes: float) -> None:
    one = plan(stage, ranks)
    n = one.derived.n_parameters
    found = model_states(one)
    assert found.device_bytes == pytest.approx(n * device_bytes, abs=4)
    assert found.host_bytes == pytest.approx(n * host_bytes, abs=4)


def test_model_states_in_other_formats() -> None:
    in_fp32 = plan("zero0", 4, "precision.dtype=fp32")
    assert model_states(in_fp32) == Memory(16 * in_fp32.derived.n_parameters, 0)
    same = plan("zero1", 1, "precision.grad_accum_dtype=same")
    assert model_states(same).device_bytes == 16 * same.derived.n_parameters


def test_what_is_kept() -> None:
    one = plan("zero1", 1, "checkpoint.keep_last=3", "checkpoint.keep_best=false")
    assert checkpoint_bytes(one) == 14 * one.derived.n_parameters
    assert disk_bytes(one) == 4 * checkpoint_bytes(one)
    best = plan("zero1", 1, "checkpoint.keep_last=3", "checkpoint.keep_best=true")
    assert disk_bytes(best) == 5 * checkpoint_bytes(best)
    tenth = best.last_step // 10
    for_good = plan("zero1", 1, "checkpoint.keep_last=3", f"checkpoint.keep_every_steps={tenth}")
    assert disk_bytes(for_good) == (5 + best.last_step // tenth) * checkpoint_bytes(for_good)


REAL = [("zero0", "fp32"), ("zero1", "fp32"), ("zero3", "fp32"), ("zero1", "bf16")]


@pytest.mark.heavy
@pytest.mark.parametrize("template, dtype", REAL)
def test_a_real_checkpoint_is_as_large(template: str, dtype: str, tmp_path: Path) -> None:
    from tests.faults.jobs import job
    from tests.small_run import small_dataset, small_plan

    settings = ("model.n_embd=128", "model.n_layer=4", f"precision.dtype={dtype}")
    data, run = small_dataset(tmp_path), tmp_path / "run"
    with job(run, data, *settings, words=("--max-steps", "3"), template=template) as started:
        assert started.wait() == [0, 0], started.text()
    small = small_plan(data, run, *settings, template=template, world_size=2)
    real = sum(p.stat().st_size for p in (run / "checkpoints/step_00000003").rglob("*.pt"))
    assert real == pytest.approx(checkpoint_bytes(small), rel=0.1)
