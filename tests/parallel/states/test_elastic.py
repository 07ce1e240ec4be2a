"""Going on at another stage, number of ranks or offload: nothing is lost, and nothing added."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2_ds.config.errors import RunError
from gpt2_ds.hosts.launcher import world_size
from gpt2_ds.parallel.compiled_ops import can_build
from tests.parallel.states.test_parameter_states import RANK_0, change, some_values, write_stage_2
from tests.parallel.states.trained_checkpoints import (
    CASES,
    KEYS,
    STEPS,
    build,
    held,
    steps_of_adam,
    train,
)
from tests.ranks import run_ranks

Known = dict[str, Any]


def groups_of(engine: Any) -> list[tuple[str, float, float]]:
    return [(g["name"], g["weight_decay"], g["lr"]) for g in engine.optimizer.param_groups]


def differences(engine: Any, known: Known, dtype: torch.dtype) -> list[str]:
    """What the engine holds that is not, to the last bit, what the other one held."""
    wrong = []
    for name, values in held(engine).items():
        for key in KEYS:
            if not torch.equal(values[key].cpu(), known["held"][name][key].cpu()):
                wrong.append(f"{key} of {name}")
        if not torch.equal(values["copy"], known["held"][name]["weight"].to(dtype)):
            wrong.append(f"copy of {name}")
    return wrong


def outcome(engine: Any, known: Known, dtype: str) -> dict[str, Any]:
    return {
        "wrong": differences(engine, known, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]),
        "steps": steps_of_adam(engine),
        "counters": (engine.global_steps, engine.global_samples, engine.skipped_steps),
        "losses": train(engine, STEPS),
    }


def load_all(folder: Path, known: dict[str, Known]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every checkpoint into every engine of its number format; of one rank, only into two."""
    from gpt2_ds.parallel.states.elastic import load_elastic
    from gpt2_ds.parallel.states.parameter_states import ParameterStates

    results = {}
    for source, before in known.items():
        if source.endswith("_1") and world_size() == 1:
            continue
        dtype = CASES[source[:-2]].dtype
        for target in (name for name, case in CASES.items() if case.dtype == dtype):
            engine = build(target)
            groups = groups_of(engine)
            load_elastic(engine, ParameterStates(folder / source))
            same = groups_of(engine) == groups
            results[source, target] = outcome(engine, before, dtype) | {"groups": same}
            engine.destroy()
    return results


@pytest.mark.heavy(minutes=2)
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.faults), 2])
def test_any_checkpoint_goes_on_anywhere(
    ranks: int, trained: tuple[Path, dict[str, Known]], tmp_path: Path
) -> None:
    folder, known = trained
    results = run_ranks(load_all, ranks, tmp_path, folder, known)
    assert len(results[0]) == (15 * 6 + 9 * 4 if ranks == 2 else 9 * 6 + 5 * 4)
    for result in results:
        for (source, target), found in result.items():
            case = (source, target, ranks)
            assert found["wrong"] == [], case
            assert found["groups"], case
            assert found["steps"] == {STEPS}, case
            assert found["counters"] == (STEPS, 6 * STEPS, 0), case
            losses = known[source]["losses"]
            if source == f"{target}_{ranks}":
                assert found["losses"] == losses, case
            else:
                tolerance = 1e-6 if CASES[target].dtype == "fp32" else 5e-4
                assert found["losses"] == pytest.approx(losses, rel=tolerance), case


def round_trip(folder: Path, known: Known) -> list[dict[str, Any]]:
    """1 -> 3 -> 2 -> 0 -> 3 with offload -> 1, saved by an engine that was loaded into."""
    from gpt2_ds.parallel.states.elastic import load_elastic
    from gpt2_ds.parallel.states.parameter_states import ParameterStates

    source, found = "zero1_2", []
    for name in ("zero3", "zero2_round_robin", "zero0", "zero3_offload", "zero1"):
        engine = build(name)
        load_elastic(engine, ParameterStates(folder / source))
        source = f"{name}_again"
        engine.save_checkpoint(str(folder), tag=source, save_latest=False)
        found.append(outcome(engine, known, "fp32"))
        engine.destroy()
    return found


@pytest.mark.heavy
def test_through_every_stage_and_back(
    trained: tuple[Path, dict[str, Known]], tmp_path: Path
) -> None:
    folder, known = trained
    results = run_ranks(round_trip, 2, tmp_path, folder, known["zero1_2"])
    for found in results[0] + results[1]:
        assert found["wrong"] == []
        assert (found["steps"], found["counters"]) == ({STEPS}, (STEPS, 6 * STEPS, 0))
        assert found["losses"] == pytest.approx(known["zero1_2"]["losses"], rel=1e-6)
    assert results[0][-1]["losses"] == known["zero1_2"]["losses"]  # stage 1 again, to the last bit


def through_cpu_adam(folder: Path, known: Known) -> list[dict[str, Any]]:
    """Torch's AdamW -> DeepSpeedCPUAdam on the host -> torch's AdamW."""
    from gpt2_ds.parallel.compiled_ops import clear_stale_lock
    from gpt2_ds.parallel.states.elastic import load_elastic
    from gpt2_ds.parallel.states.parameter_states import ParameterStates

    clear_stale_lock("cpu_adam", nodes=1)  # of a test run that was killed
    source, found = "zero1_2", []
    for name, cpu_adam in (("zero3_offload", True), ("zero2_offload", True), ("zero3", False)):
        engine = build(name, cpu_adam=cpu_adam)
        load_elastic(engine, ParameterStates(folder / source))
        source = f"{name}_cpu_adam"
        engine.save_checkpoint(str(folder), tag=source, save_latest=False)
        adam = {"adam": type(engine.basic_optimizer).__name__}
        found.append(outcome(engine, known, "fp32") | adam)
        engine.destroy()
    return found


@pytest.mark.heavy(minutes=2)
def test_deepspeeds_own_adam_goes_on_with_torchs_state(
    trained: tuple[Path, dict[str, Known]], tmp_path: Path
) -> None:
    if not can_build():
        pytest.skip("DeepSpeedCPUAdam needs a C++ compiler and ninja")
    folder, known = trained
    results = run_ranks(through_cpu_adam, 2, tmp_path, folder, known["zero1_2"])
    for result in results:
        names = [found["adam"] for found in result]
        assert names == ["DeepSpeedCPUAdam", "DeepSpeedCPUAdam", "AdamW"]
        for found in result:
            assert (found["wrong"], found["steps"]) == ([], {STEPS})
            assert found["losses"] == pytest.approx(known["zero1_2"]["losses"], rel=1e-6)


def engine_stub(zero: dict[str, Any], module: Any = None) -> Any:
    return SimpleNamespace(config={"zero_optimization": zero}, module=module)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_offload_to_nvme_is_refused(key: str) -> None:
    from gpt2_ds.parallel.states.elastic import load_elastic

    engine = engine_stub({"stage": 3, key: {"device": "nvme"}})
    with pytest.raises(RunError) as caught:
        load_elastic(engine, SimpleNamespace())
    assert str(caught.value) == (
        f"zero_optimization.{key}.device: nvme cannot resume from a checkpoint of another stage or "
        "number of ranks. Use a template that offloads to cpu, or those of the checkpoint."
    )


def test_offload_in_part_is_refused() -> None:
    from gpt2_ds.parallel.states.elastic import load_elastic

    engine = engine_stub({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.3}})
    with pytest.raises(RunError) as caught:
        load_elastic(engine, SimpleNamespace())
    assert str(caught.value) == (
        "zero_optimization.offload_optimizer.ratio: 0.3 cannot resume from a checkpoint of another "
        "stage or number of ranks. Use a template with ratio 1."
    )


def test_another_model_is_refused() -> None:
    from gpt2_ds.parallel.states.elastic import load_elastic

    engine = engine_stub({"stage": 1}, torch.nn.Linear(3, 2))
    for shapes, message in (
        (
            {"weight": (2, 4), "bias": (2,)},
            "weight: the recipe's model has (2, 3) of it, the checkpoint (2, 4)",
        ),
        ({"weight": (2, 3)}, "bias: the recipe's model has (2,) of it, the checkpoint none"),
        (
            {"weight": (2, 3), "bias": (2,), "extra": (1,)},
            "extra: the recipe's model has none of it, the checkpoint (1,)",
        ),
    ):
        states = SimpleNamespace(
            names=lambda shapes=shapes: list(shapes),
            shape=lambda name, shapes=shapes: torch.Size(shapes[name]),
        )
        with pytest.raises(RunError) as caught:
            load_elastic(engine, states)
        assert (
            str(caught.value) == f"{message}. Use the recipe that the checkpoint was written with."
        )


@pytest.mark.parametrize("half", [True, False])
def test_the_loss_scale_goes_on_where_there_is_one(half: bool, tmp_path: Path) -> None:
    """fp16 does not run on a CPU: a plain torch optimizer stands for the engine here."""
    from gpt2_ds.parallel.states.elastic import load_elastic
    from gpt2_ds.parallel.states.parameter_states import ParameterStates

    values, groups = some_values([[(2, 3)], [(2,)]], names=[["weight"], ["bias"]])
    write_stage_2(tmp_path / "step", values, groups, 2)
    scale = {"cur_scale": 512.0, "cur_iter": 70, "last_overflow_iter": 12, "cur_hysteresis": 1}
    state = "optimizer_state_dict"
    change(tmp_path / "step" / RANK_0, state, "dynamic_loss_scale", to=True)
    change(tmp_path / "step" / RANK_0, state, "loss_scaler", to=SimpleNamespace(**scale))
    model = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(model.parameters(), fused=True)
    first = SimpleNamespace(cur_scale=65536.0, scale_window=1000)
    engine = SimpleNamespace(
        config={"zero_optimization": {"stage": 0}},
        module=model,
        basic_optimizer=adam,
        optimizer=SimpleNamespace(loss_scaler=first),
        zero_optimization_stage=lambda: 0,
        fp16_enabled=lambda: half,
    )
    load_elastic(engine, ParameterStates(tmp_path / "step"))
    for name, p in model.named_parameters():
        found = {"weight": p} | adam.state[p]
        assert float(found["step"]) == 7
        assert all(torch.equal(found[key], values[name][key]) for key in KEYS)
    expected = {"cur_scale": 65536.0} | (scale if half else {}) | {"scale_window": 1000}
    assert vars(first) == expected
    assert (engine.global_steps, engine.global_samples, engine.skipped_steps) == (9, 90, 2)
