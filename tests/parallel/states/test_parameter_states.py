"""Every number of a checkpoint is found again, whatever stage and number of ranks wrote it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2_ds.config.errors import RunError
from gpt2_ds.model import GPT2LMHeadModel
from gpt2_ds.parallel.states.parameter_states import ParameterStates, load_fp32_weights
from tests.parallel.states.trained_checkpoints import KEYS, SEED, SOURCES, STEPS, model_config

Values = dict[str, dict[str, Tensor]]


@pytest.mark.heavy
def test_all_that_deepspeed_had_is_read(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, known = trained
    assert len(known) == sum(len(names) for names in SOURCES.values())
    for tag, before in known.items():
        states = ParameterStates(folder / tag)
        assert states.names() == list(before["held"]), tag  # the module's order
        assert states.tied == {"lm_head.weight": "transformer.wte.weight"}, tag
        assert states.loss_scaler is None, tag
        assert states.counters == {
            "global_steps": STEPS,
            "global_samples": 6 * STEPS,
            "skipped_steps": 0,
        }
        for name, values in before["held"].items():
            assert states.shape(name) == values["weight"].shape, (tag, name)
            assert states.step(name) == STEPS
            found = {
                "weight": states.weight(name),
                "exp_avg": states.moment(name, "exp_avg"),
                "exp_avg_sq": states.moment(name, "exp_avg_sq"),
            }
            for key in KEYS:
                assert found[key].dtype == torch.float32, (tag, name, key)
                assert torch.equal(found[key], values[key]), (tag, name, key)
                assert values[key].any(), (tag, name, key)


@pytest.mark.heavy
def test_whole_weights_are_those_the_engine_had(
    trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, known = trained
    model = GPT2LMHeadModel(model_config(), seed=SEED)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    capsys.readouterr()
    for tag, before in known.items():
        weights = load_fp32_weights(folder / tag)
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", ""), tag
        assert weights.keys() == {*start, "lm_head.weight"}, tag
        assert torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])
        for name, values in before["held"].items():
            assert weights[name].dtype == torch.float32
            assert weights[name].device.type == "cpu"
            assert torch.equal(weights[name], values["weight"]), (tag, name)
            assert not torch.equal(weights[name], start[name]), (tag, name)
        model.load_state_dict(weights)  # whole: nothing missing, nothing more


def model_states(ranks: int, shapes: Any, **more: Any) -> dict[str, Any]:
    return {
        "module": {name: torch.zeros(0) for group in shapes for name in group},
        "optimizer": None,
        "param_shapes": shapes,
        "shared_params": {},
        "dp_world_size": ranks,
        "ds_config": {
            "optimizer": {"type": "AdamW"},
            "zero_optimization": {"stage": 2},
            "bf16": {"enabled": False},
        },
        "ds_version": "0.0.1",
        "global_steps": 9,
        "global_samples": 90,
        "skipped_steps": 2,
        **more,
    }


def save(folder: Path, model: dict[str, Any], optimizers: list[dict[str, Any]], stage: int) -> None:
    folder.mkdir(parents=True)
    name = "mp_rank_00_model_states.pt"
    torch.save(model, folder / (f"zero_pp_rank_0_{name}" if stage == 3 else name))
    for rank, states in enumerate(optimizers):
        file = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": states}, file)


def rows_of(values: Values, groups: list[list[str]], key: str) -> list[Tensor]:
    return [torch.cat([values[name][key].flatten() for name in group]) for group in groups]


def write_stage_2(folder: Path, values: Values, groups: list[list[str]], ranks: int) -> None:
    """Rows padded to a multiple of twice the ranks, weights saved without the padding."""
    optimizers: list[dict[str, Any]] = [
        {
            "single_partition_of_fp32_groups": [],
            "base_optimizer_state": {"state": {i: {"step": 7} for i in range(len(groups))}},
            "param_alignment_paddings": [[0] * len(group) for group in groups],
        }
        for _ in range(ranks)
    ]
    for key in KEYS:
        for i, row in enumerate(rows_of(values, groups, key)):
            padded = torch.cat([row, torch.full((-row.numel() % (2 * ranks),), math.nan)])
            for rank, part in enumerate(padded.chunk(ranks)):
                saved = optimizers[rank]
                if key == "weight":
                    own = max(0, min(len(part), len(row) - rank * len(part)))
                    saved["single_partition_of_fp32_groups"].append(part[:own])
                else:
                    saved["base_optimizer_state"]["state"][i][key] = part
    shapes = [{name: values[name]["weight"].shape for name in group} for group in groups]
    save(folder, model_states(ranks, shapes), optimizers, 2)


def write_stage_3(folder: Path, values: Values, groups: list[list[str]], ranks: int) -> None:
    """Each parameter padded to a multiple of the ranks."""
    optimizers: list[dict[str, Any]] = []
    for rank in range(ranks):
        rows: dict[str, list[Tensor]] = {}
        for key in KEYS:
            rows[key] = []
            for group in groups:
                parts = []
                for name in group:
                    flat = values[name][key].flatten()
                    padding = torch.full((-flat.numel() % ranks,), math.nan)
                    parts.append(torch.cat([flat, padding]).view(ranks, -1)[rank])
                rows[key].append(torch.cat(parts))
        state = {
            i: {"step": 7, "exp_avg": rows["exp_avg"][i], "exp_avg_sq": rows["exp_avg_sq"][i]}
            for i in range(len(groups))
        }
        optimizers.append(
            {"fp32_flat_groups": rows["weight"], "optimizer_state_dict": {"state": state}}
        )
    shapes = [{name: values[name]["weight"].shape for name in group} for group in groups]
    save(folder, model_states(ranks, shapes), optimizers, 3)


WRITERS = {2: write_stage_2, 3: write_stage_3}


def some_values(
    shapes: list[list[tuple[int, ...]]], names: list[list[str]] | None = None
) -> tuple[Values, list[list[str]]]:
    groups = names or [[f"p{i}.{j}" for j in range(len(group))] for i, group in enumerate(shapes)]
    values = {
        name: {key: torch.randn(shape) for key in KEYS}
        for row, group in zip(groups, shapes, strict=True)
        for name, shape in zip(row, group, strict=True)
    }
    return values, groups


SHAPES = st.lists(
    st.lists(
        st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(shapes=SHAPES, ranks=st.integers(1, 6), stage=st.sampled_from((2, 3)), data=st.data())
def test_any_shapes_on_any_number_of_ranks(
    shapes: list[list[tuple[int, ...]]],
    ranks: int,
    stage: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    values, groups = some_values(shapes)
    folder = tmp_path_factory.mktemp("any") / "step"
    WRITERS[stage](folder, values, groups, ranks)
    states = ParameterStates(folder)
    assert states.names() == list(values)
    for name, expected in values.items():
        numel = expected["weight"].numel()
        start = data.draw(st.integers(0, numel))
        stop = data.draw(st.integers(start, numel))
        assert states.shape(name) == expected["weight"].shape
        assert states.step(name) == 7
        assert torch.equal(states.weight(name), expected["weight"])
        assert torch.equal(states.moment(name, "exp_avg_sq"), expected["exp_avg_sq"])
        part = states.part(name, "exp_avg", start, stop)
        assert torch.equal(part, expected["exp_avg"].flatten()[start:stop])


@pytest.fixture
def two_ranks(tmp_path: Path) -> Path:
    """Stage 2 on two ranks, three parameters in two groups."""
    values, groups = some_values([[(3, 5), (2, 2)], [(7,)]])
    write_stage_2(tmp_path / "step", values, groups, 2)
    return tmp_path / "step"


def change(file: Path, *path: Any, to: Any) -> None:
    """Set one value in a file of a checkpoint; `to` None takes it out."""
    states = place = torch.load(file, weights_only=False)
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    torch.save(states, file)


MODEL, RANK_0, RANK_1 = (
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
)


@pytest.mark.parametrize("name", [MODEL, RANK_0, RANK_1])
def test_a_missing_file_is_named(name: str, two_ranks: Path) -> None:
    (two_ranks / name).unlink()
    with pytest.raises(RunError) as caught:
        ParameterStates(two_ranks)
    assert str(caught.value) == (
        f"{two_ranks / name}: not there. Restore it from a copy, or remove this checkpoint to "
        "resume from the one before."
    )


def unknown(folder: Path, what: str) -> str:
    return (
        f"{folder}: {what}, which is not how DeepSpeed 0.19.8 writes it (this one: 0.0.1). Use the "
        "DeepSpeed that wrote it, with the same template and number of ranks."
    )


def test_unknown_layouts_are_named(two_ranks: Path) -> None:
    state = "optimizer_state_dict"
    change(two_ranks / RANK_0, state, "param_alignment_paddings", to=[[0, 3], [0]])
    known = "base_optimizer_state, param_alignment_paddings, single_partition_of_fp32_groups"
    with pytest.raises(RunError) as caught:
        ParameterStates(two_ranks)
    assert str(caught.value) == unknown(two_ranks, f"the optimizer's state holds {known}")
    change(two_ranks / RANK_0, state, to={"loss_scaler": 1, "base_optimizer_state": []})
    with pytest.raises(RunError) as caught:
        ParameterStates(two_ranks)
    known = "base_optimizer_state, loss_scaler"
    assert str(caught.value) == unknown(two_ranks, f"the optimizer's state holds {known}")
    change(two_ranks / MODEL, "shared_params", to=None)
    change(two_ranks / MODEL, "dp_world_size", to=None)
    with pytest.raises(RunError) as caught:
        ParameterStates(two_ranks)
    lacks = "the model's state lacks dp_world_size, shared_params"
    assert str(caught.value) == unknown(two_ranks, lacks)


def test_a_parameter_of_another_size_is_named(two_ranks: Path) -> None:
    weights = "optimizer_state_dict", "single_partition_of_fp32_groups"
    change(two_ranks / RANK_1, *weights, 1, to=torch.zeros(1))
    with pytest.raises(RunError) as caught:
        ParameterStates(two_ranks).weight("p1.0")
    assert str(caught.value) == unknown(two_ranks, "weight of p1.0 has 5 elements, not 7")


def test_offload_that_cannot_be_read_is_refused(two_ranks: Path) -> None:
    zero = two_ranks / MODEL, "ds_config", "zero_optimization"
    change(*zero, to={"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}})
    states = ParameterStates(two_ranks)
    assert states.weight("p1.0").shape == (7,)
    for ask in (states.step, lambda name: states.moment(name, "exp_avg")):
        with pytest.raises(RunError) as caught:
            ask("p1.0")
        assert str(caught.value) == (
            f"{two_ranks}: it was written with zero_optimization.offload_optimizer.ratio 0.5, and "
            "DeepSpeed 0.19.8 then saves the optimizer's state only in part. Resume from a "
            "checkpoint that was written with ratio 1."
        )
    change(*zero, to={"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}})
    assert ParameterStates(two_ranks).step("p1.0") == 7  # stage 2 does not read the ratio


@pytest.mark.parametrize("deepspeed_type, name", [("Muon", "muon"), ("Lion", "Lion")])
def test_another_optimizers_state_is_not_read_as_adams(
    two_ranks: Path, deepspeed_type: str, name: str
) -> None:
    change(two_ranks / MODEL, "ds_config", "optimizer", "type", to=deepspeed_type)
    states = ParameterStates(two_ranks)
    assert states.weight("p1.0").shape == (7,)
    for ask in (states.step, lambda name: states.moment(name, "exp_avg")):
        with pytest.raises(RunError) as caught:
            ask("p1.0")
        assert str(caught.value) == (
            f"{two_ranks}: it was written with optimizer.name {name}, and only Adam's state can be "
            "read here; the weights can. Resume with the same template on the same number of ranks."
        )


def test_the_loss_scale_of_fp16_and_the_counters(two_ranks: Path) -> None:
    scale = {"cur_scale": 512.0, "cur_iter": 70, "last_overflow_iter": 12, "cur_hysteresis": 1}
    states = "optimizer_state_dict"
    change(two_ranks / RANK_0, states, "loss_scaler", to=SimpleNamespace(**scale, dtype="half"))
    change(two_ranks / RANK_0, states, "dynamic_loss_scale", to=False)
    assert ParameterStates(two_ranks).loss_scaler is None
    change(two_ranks / RANK_0, states, "dynamic_loss_scale", to=True)
    found = ParameterStates(two_ranks)
    assert found.loss_scaler == scale
    assert found.counters == {"global_steps": 9, "global_samples": 90, "skipped_steps": 2}


def test_before_the_first_update_the_moments_are_zeros(two_ranks: Path) -> None:
    for name in (RANK_0, RANK_1):
        change(two_ranks / name, "optimizer_state_dict", "base_optimizer_state", "state", to={})
    states = ParameterStates(two_ranks)
    assert states.step("p0.0") == 0
    assert torch.equal(states.moment("p0.0", "exp_avg"), torch.zeros(3, 5))
    assert states.weight("p0.0").any()


def test_a_name_that_is_not_there(two_ranks: Path) -> None:
    with pytest.raises(KeyError, match="p9"):
        ParameterStates(two_ranks).shape("p9")
