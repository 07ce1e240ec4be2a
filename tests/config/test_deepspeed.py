"""A template holds what DeepSpeed knows, and DeepSpeed takes the dict that is built from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.deepspeed import without_monitors
from gpt2_ds.config.recipe_file import flatten
from gpt2_ds.config.run_plan import RunPlan, resolve_run
from tests.config.small_recipe import small_file
from tests.conftest import REPOSITORY

TEMPLATES = sorted(Path("ds_configs").glob("*.json"))


def template_file(folder: Path, text: str) -> Path:
    path = folder / "t.json"
    path.write_text(text)
    return path


def with_zero(rest: str) -> str:
    return '{"zero_optimization": {"stage": 1}, ' + rest + "}"


def plan_of(folder: Path, template: Path, dtype: str, world_size: int) -> RunPlan:
    return resolve_run(
        small_file(folder),
        world_size=world_size,
        template_file=template,
        overrides=[f"precision.dtype={dtype}", "batch.micro_batch_size=1"],
        run_dir=folder / "runs" / "x",
    )


def all_values(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from all_values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from all_values(inner)
    else:
        yield value


COMBINATIONS = [
    (template, dtype, world_size)
    for template in TEMPLATES
    for dtype in ("fp32", "bf16", "fp16")
    for world_size in (1, 2, 8)
    if dtype == "fp32" or json.loads(template.read_text())["zero_optimization"]["stage"] > 0
]


@pytest.fixture
def deepspeed_config_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    config = pytest.importorskip("deepspeed.runtime.config")
    monkeypatch.setattr(config.dist, "get_rank", lambda *_: 0)  # it asks the process group
    return config


def test_deepspeed_takes_the_dict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deepspeed_config_module: Any,
    subtests: pytest.Subtests,
) -> None:
    for (template, dtype, world_size), cpu_adam in product(COMBINATIONS, (False, True)):
        monkeypatch.setattr(
            deepspeed_config_module.dist, "get_world_size", lambda *_, n=world_size: n
        )
        with subtests.test(f"{template.stem} {dtype} {world_size} ranks, cpu_adam {cpu_adam}"):
            plan = plan_of(tmp_path, template, dtype, world_size)
            config = plan.deepspeed(cpu_adam=cpu_adam)
            check_taken(plan, config, deepspeed_config_module.DeepSpeedConfig(config))


def check_taken(plan: RunPlan, config: dict[str, Any], taken: Any) -> None:
    dtype = plan.recipe.precision.dtype
    assert not [value for value in all_values(config) if value is None or value == "auto"]
    assert json.loads(json.dumps(config)) == config

    accumulation = 16 // plan.derived.world_size
    assert taken.train_batch_size == 16
    assert taken.train_micro_batch_size_per_gpu == 1
    assert taken.gradient_accumulation_steps == accumulation
    assert taken.zero_config.stage == plan.template.zero_optimization.stage
    assert taken.gradient_clipping == 1.0
    assert taken.bfloat16_config.enabled == (dtype == "bf16")
    assert taken.float16_config.enabled == (dtype == "fp16")
    assert taken.grad_accum_dtype == (None if dtype == "fp32" else "fp32")
    assert taken.monitor_config.tensorboard.enabled
    written = plan.template.zero_optimization.model_dump(exclude_none=True)
    understood = taken.zero_config.model_dump(by_alias=True, mode="json")
    fields = type(taken.zero_config).model_fields
    for key, value in flatten(written):
        top, _, inner = key.partition(".")
        found = understood.get(top, understood.get(fields[top].alias) if top in fields else None)
        assert (found[inner] if inner else found) == value, key


def test_gradients_may_accumulate_in_their_own_format(tmp_path: Path) -> None:
    plan = resolve_run(
        small_file(tmp_path),
        world_size=1,
        template_file=Path("ds_configs/zero1.json"),
        overrides=["precision.dtype=bf16", "precision.grad_accum_dtype=same"],
    )
    assert plan.deepspeed(cpu_adam=False)["data_types"] == {"grad_accum_dtype": "bf16"}


def test_the_optimizer_is_the_recipes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Path("ds_configs/zero1.json"), "fp32", 1)
    config = plan.deepspeed(cpu_adam=False)
    assert config["optimizer"] == {
        "type": "AdamW",
        "params": {
            "lr": 1e-3,
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "weight_decay": 0.1,
            "torch_adam": True,
            "fused": True,
        },
    }
    assert config["zero_force_ds_cpu_optimizer"] is False
    host = plan.deepspeed(cpu_adam=True)
    assert host["optimizer"]["params"]["torch_adam"] is False
    assert "fused" not in host["optimizer"]["params"]
    assert host["zero_force_ds_cpu_optimizer"] is True


@pytest.mark.parametrize("cpu_adam", [False, True])
def test_muon_is_the_recipes(tmp_path: Path, cpu_adam: bool) -> None:
    plan = resolve_run(
        small_file(tmp_path),
        world_size=1,
        template_file=Path("ds_configs/zero1.json"),
        overrides=[
            "optimizer.name=muon",
            "optimizer.muon_lr=0.02",
            "optimizer.muon_momentum=0.9",
            "optimizer.gradient_clipping=0",
        ],
    )
    config = plan.deepspeed(cpu_adam=cpu_adam)
    assert config["optimizer"] == {
        "type": "Muon",
        "params": {
            "adam_lr": 1e-3,
            "muon_lr": 0.02,
            "momentum": 0.9,
            "ns_method": "gram",
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "weight_decay": 0.1,
            "torch_adam": not cpu_adam,
        },
    }
    assert config["gradient_clipping"] == 0.0
    assert plan.template.zero_optimization.reduce_scatter
    assert config["zero_optimization"]["reduce_scatter"] is False


def test_monitors_write_into_the_run(tmp_path: Path) -> None:
    text = with_zero(
        '"csv_monitor": {"enabled": true}, "wandb": {"enabled": true}, '
        '"comet": {"enabled": false}, "comms_logger": {"enabled": true}'
    )
    config = plan_of(tmp_path, template_file(tmp_path, text), "fp32", 1).deepspeed(cpu_adam=False)
    runs = tmp_path / "runs"
    assert config["tensorboard"] == {"enabled": True, "output_path": str(runs), "job_name": "x"}
    assert config["csv_monitor"] == {
        "enabled": True,
        "output_path": str(runs / "x"),
        "job_name": "csv",
    }
    assert config["wandb"] == {"enabled": True, "project": "gpt2_ds", "group": "x"}
    assert config["comet"] == {"enabled": False, "samples_log_interval": 1}
    assert config["comms_logger"]["enabled"] is True


@pytest.mark.parametrize("accumulate, expected", [("fp32", "fp32"), ("same", "bf16")])
def test_gradients_are_reduced_in_the_format_they_add_up_in(
    tmp_path: Path, accumulate: str, expected: str
) -> None:
    plan = resolve_run(
        small_file(tmp_path),
        world_size=2,
        template_file=REPOSITORY / "ds_configs/zero2.json",
        overrides=["precision.dtype=bf16", f"precision.grad_accum_dtype={accumulate}"],
    )
    config = plan.deepspeed(cpu_adam=False)
    assert config["data_types"]["grad_accum_dtype"] == expected
    assert config["communication_data_type"] == expected


def test_without_monitors_nothing_is_reported_and_the_rest_stays(tmp_path: Path) -> None:
    config = {name: {"enabled": True} for name in ("tensorboard", "csv_monitor", "wandb", "comet")}
    assert without_monitors(config | {"train_batch_size": 8}) == {"train_batch_size": 8}
