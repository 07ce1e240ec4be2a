"""Model states against the papers' numbers, a real engine's tensors and a real checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.plan.states import Memory, checkpoint_bytes, disk_bytes, model_states
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
        # ZeRO's 2 + 2 + 12 bytes (section 3.1), and 4 for gradients that add up in fp32; from
        # stage 2 those alone are kept, and with offload once more for the update.
        ("zero1", 1, 20, 0),
        ("zero1", 4, 2 + 6 + 12 / 4, 0),
        ("zero2", 4, 2 + 4 / 4 + 12 / 4, 0),
        ("zero2_offload", 4, 2 + 4 / 4, (4 + 12 + 2) / 4),
        ("zero3", 4, 18 / 4, 0),
        ("zero3_offload", 4, 0, (2 + 4 + 4 + 12) / 4),
    ],
)
def test_model_states(stage: str, ranks: int, device_bytes: float, host_bytes: float) -> None:
    one = plan(stage, ranks)
    n = one.derived.n_parameters
    found = model_states(one).total
    persistent = 2 * (12 * 13 * 768 + 2 * 768) if stage.startswith("zero3") else 0
    assert found.device_bytes == pytest.approx(n * device_bytes + persistent, abs=8)
    assert found.host_bytes == pytest.approx(n * host_bytes, abs=8)
    assert found.disk_bytes == 0


def test_model_states_in_other_formats() -> None:
    in_fp32 = plan("zero0", 4, "precision.dtype=fp32")
    assert model_states(in_fp32).total == Memory(16 * in_fp32.derived.n_parameters)
    same = plan("zero1", 1, "precision.grad_accum_dtype=same")
    assert model_states(same).total.device_bytes == 16 * same.derived.n_parameters


def test_states_on_disks() -> None:
    one = plan("zero3_nvme", 4)
    n, states = one.derived.n_parameters, model_states(one)
    assert states.parameters.disk_bytes == pytest.approx(2 * n / 4, abs=8)
    assert states.optimizer == Memory(disk_bytes=12 * n // 4)
    assert states.gradients == Memory(0, n, n)


def test_a_second_partition_is_held_too() -> None:
    one, without = plan("zero3_hpz", 16), plan("zero3", 16)
    more = model_states(one).parameters.device_bytes - model_states(without).parameters.device_bytes
    assert more == 2 * one.derived.n_parameters // 8


CASES = [
    ("zero0", "fp32", "fp32"),
    ("zero1", "fp32", "fp32"),
    ("zero2", "fp32", "fp32"),
    ("zero3", "fp32", "fp32"),
    ("zero1", "bf16", "fp32"),
    ("zero2", "bf16", "fp32"),
    ("zero3", "bf16", "fp32"),
    ("zero1", "bf16", "same"),
    ("zero2_offload", "bf16", "fp32"),
    ("zero3_offload", "bf16", "fp32"),
]


FOR_FOUR = [case for case in CASES if case[1:] == ("bf16", "fp32")]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "ranks, cases, n_layer",
    # Stages 1 and 2 share by bytes, and a matrix on a border is held by both ranks: among more
    # ranks it takes more blocks for that not to matter.
    [(1, CASES, 32), (2, CASES, 32), (4, FOR_FOUR, 48)],
)
def test_a_real_engine_holds_as_much(
    ranks: int, cases: list[tuple[str, str, str]], n_layer: int, tmp_path: Path
) -> None:
    from tests.plan.held_states import held
    from tests.ranks import run_ranks

    for results in run_ranks(held, ranks, tmp_path, tmp_path, cases, n_layer):
        for case, (real, one) in zip(cases, results, strict=True):
            states = model_states(one)
            planned = {
                name: held.device_bytes + held.host_bytes for name, held in states._asdict().items()
            }
            for name, size in planned.items():
                assert real[name] == pytest.approx(size, rel=0.05), (case, name)


MUON = (
    "optimizer.name=muon",
    "optimizer.muon_lr=0.02",
    "optimizer.muon_momentum=0.95",
    "optimizer.gradient_clipping=0",
)
WITH_MUON = [
    ("zero0", "fp32", "fp32"),
    ("zero1", "bf16", "fp32"),
    ("zero1", "bf16", "same"),
    ("zero2", "fp32", "fp32"),
    ("zero2", "bf16", "fp32"),
    ("zero3", "bf16", "fp32"),
    ("zero2_offload", "bf16", "fp32"),
]


def held_with_muon(folder: Path) -> list[tuple[dict[str, int], RunPlan]]:
    from tests import small_run
    from tests.plan.held_states import held

    small_run.SETTINGS += MUON
    return held(folder, WITH_MUON, 32)


@pytest.mark.heavy
def test_muon_keeps_one_number_for_each_of_a_blocks_matrices(tmp_path: Path) -> None:
    from tests.ranks import run_ranks

    results = run_ranks(held_with_muon, 2, tmp_path, tmp_path)[0]
    for case, (real, one) in zip(WITH_MUON, results, strict=True):
        states = model_states(one)
        optimizer = states.optimizer.device_bytes + states.optimizer.host_bytes
        assert real["optimizer"] == pytest.approx(optimizer, rel=0.05), case
        assert real["parameters"] == pytest.approx(states.parameters.device_bytes, rel=0.05), case


def test_muons_momentum_is_half_of_adams() -> None:
    for stage, bytes_each in (("zero1", 4), ("zero2", 2), ("zero3", 4)):
        adam, muon = plan(stage, 1), plan(stage, 1, *MUON)
        in_blocks = 12 * 12 * 768**2
        less = model_states(adam).optimizer.device_bytes - model_states(muon).optimizer.device_bytes
        assert less == in_blocks * (8 - bytes_each)
        assert checkpoint_bytes(adam) - checkpoint_bytes(muon) == less


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
