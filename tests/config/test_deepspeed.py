"""A template holds what DeepSpeed knows, and DeepSpeed takes the dict that is built from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config import template as schema
from gpt2_ds.config.deepspeed import without_monitors
from gpt2_ds.config.recipe_file import flatten
from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.config.template import Template
from gpt2_ds.config.template_file import RECIPE_KEYS, check_template, load_template
from tests.config.small_recipe import faults_of, load_small, only_fault, small_file
from tests.conftest import REPOSITORY

TEMPLATES = sorted(Path("ds_configs").glob("*.json"))


def template_file(folder: Path, text: str) -> Path:
    path = folder / "t.json"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> list[str]:
    """What is said of a template, without the file's name."""
    path = template_file(folder, text)
    faults = faults_of(lambda: load_template(path))
    assert all(fault.where.startswith(str(path)) for fault in faults)
    return [str(fault).removeprefix(str(path)).removeprefix(": ") for fault in faults]


def with_zero(rest: str) -> str:
    return '{"zero_optimization": {"stage": 1}, ' + rest + "}"


def zero(rest: str) -> str:
    return '{"zero_optimization": {' + rest + "}}"


@pytest.mark.parametrize(
    "text, message",
    [
        (with_zero('"wal_clock_breakdown": true'), "no such key. Did you mean wall_clock_breakd"),
        (with_zero('"zzz": 1'), "no such key. Known here: comet, comms_logger, csv_monitor, "),
        (zero('"stage": 1, "overlap_com": true'), "no such key. Did you mean overlap_comm?"),
        (zero('"stage": "2"'), "is '2', must be an integer. It is: 0: nothing, 1: optimizer"),
        (zero('"stage": 4'), "is 4, must be less than or equal to 3. It is: 0: nothing"),
        (zero('"stage": -1'), "is -1, must be greater than or equal to 0. It is: 0: nothing"),
        (zero('"stage": true'), "is true, must be an integer. It is:"),
        (zero('"stage": 1.0'), "is 1.0, must be an integer. It is:"),
        (zero(""), "missing. Add it. It is: 0: nothing, 1: optimizer"),
        ("{}", "missing. Add it. It is: ZeRO."),
        ('{"zero_optimization": null}', "is empty, not a section. Give it its keys."),
        (zero('"stage": 1, "reduce_bucket_size": 5e8'), "is 500000000.0, must be an integer."),
        (zero('"stage": 1, "reduce_bucket_size": 0'), "is 0, must be greater than 0. It is: El"),
        (
            with_zero('"communication_data_type": "bf16"'),
            "belongs into the recipe. Set precision.grad_accum_dtype there instead.",
        ),
        (with_zero('"gradient_predivide_factor": NaN'), "is nan, must be a finite number."),
        (with_zero('"gradient_predivide_factor": 1e999'), "is inf, must be a finite number."),
        (with_zero('"wandb": {}'), "missing. Add it. It is: Send to it."),
        ("[1]", "not a JSON object. Write {...}, as the files of ds_configs/ do."),
        ("null", "not a JSON object. Write {...}, as the files of ds_configs/ do."),
        ("", ":1: not JSON: Expecting value. Mend it."),
        ('{\n"a": 1\n"b"}', ":3: not JSON: "),
        ("recipe: yes", ":1: not JSON: Expecting value. Mend it."),
        ('{"a": 1, "a": 2}', "a: given twice. Remove one of them."),
        (zero('"stage": 1, "stage": 2'), "stage: given twice. Remove one of them."),
        ("[" * 100_000, "nested too deep, or holds a number too long, to be a template."),
        ('{"a":' * 100_000, "nested too deep, or holds a number too long, to be a template."),
        (with_zero(f'"a": {"9" * 5000}'), "nested too deep, or holds a number too long, to be"),
    ],
)
def test_one_mistake(tmp_path: Path, text: str, message: str) -> None:
    said = refused(tmp_path, text)
    assert len(said) == 1
    assert message in said[0].replace(": :", ":")


def test_a_byte_order_mark_is_taken(tmp_path: Path) -> None:
    path = template_file(tmp_path, "\ufeff" + zero('"stage": 1'))
    assert load_template(path).zero_optimization.stage == 1


def test_auto_is_refused_everywhere(tmp_path: Path) -> None:
    text = zero('"stage": "auto", "overlap_comm": "auto"')
    how = 'is "auto", which DeepSpeed takes in silence. Write the value.'
    assert refused(tmp_path, text) == [
        f"zero_optimization.{key}: {how}" for key in ("overlap_comm", "stage")
    ]
    assert refused(tmp_path, '{"zero_optimization": "auto"}') == [f"zero_optimization: {how}"]
    said = refused(tmp_path, with_zero('"gradient_cliping": "auto"'))
    assert said[0] == f"gradient_cliping: {how}"
    assert said[1].startswith("gradient_cliping: no such key.")


@pytest.mark.parametrize("key", RECIPE_KEYS)
@pytest.mark.parametrize("value", ["1", '"auto"', '{"enabled": "auto"}'])
def test_a_key_of_the_recipe_names_the_recipes_key(tmp_path: Path, key: str, value: str) -> None:
    assert refused(tmp_path, with_zero(f'"{key}": {value}')) == [
        f"{key}: belongs into the recipe. Set {RECIPE_KEYS[key]} there instead."
    ]


def test_the_named_recipe_keys_are_there(tmp_path: Path) -> None:
    values = load_small(tmp_path).recipe.model_dump()
    known = {key for key, _ in flatten(values)} | values.keys()
    assert set(RECIPE_KEYS.values()) <= known


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = (
        '{"zero_optimization": {"stage": 9, "overlap_comm": "auto"}, "zzz": 1, '
        '"optimizer": {}, "fp16": {}}'
    )
    keys = [said.partition(":")[0] for said in refused(tmp_path, text)]
    assert keys == [
        "optimizer",
        "fp16",
        "zero_optimization.overlap_comm",
        "zero_optimization.stage",
        "zzz",
    ]


@pytest.mark.parametrize("part, stage", [("offload_optimizer", 0), ("offload_param", 2)])
def test_offload_needs_a_stage(tmp_path: Path, part: str, stage: int) -> None:
    text = zero(f'"stage": {stage}, "{part}": {{"device": "cpu"}}')
    assert refused(tmp_path, text) == [
        f"zero_optimization.{part}: needs stage {stage + 1} or more, and stage is {stage}. "
        f"Set stage to {stage + 1} or remove {part}."
    ]


@pytest.mark.parametrize("part", ["offload_optimizer", "offload_param"])
def test_nvme_needs_a_path(tmp_path: Path, part: str) -> None:
    text = zero(f'"stage": 3, "{part}": {{"device": "nvme"}}')
    assert refused(tmp_path, text) == [
        f"zero_optimization.{part}.nvme_path: missing for device nvme. Name a folder on a disk."
    ]
    load_template(template_file(tmp_path, text.replace('"nvme"', '"nvme", "nvme_path": "/x"')))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bits_at_stage_0_are_refused(tmp_path: Path, dtype: str) -> None:
    loaded = load_small(tmp_path, f"precision.dtype={dtype}")
    template = load_template(Path("ds_configs/zero0.json"))
    assert only_fault(lambda: check_template(template, "t.json", loaded)) == (
        f"t.json: zero_optimization.stage: is 0 with precision.dtype {dtype}: DeepSpeed takes a "
        "false Adam step at the start. Use --template ds_configs/zero1.json, which costs nothing "
        "more."
    )
    check_template(load_template(Path("ds_configs/zero1.json")), "t.json", loaded)
    check_template(template, "t.json", load_small(tmp_path))


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


@pytest.mark.parametrize("cpu_adam", [False, True])
@pytest.mark.parametrize(
    "template, dtype, world_size", COMBINATIONS, ids=lambda part: getattr(part, "stem", str(part))
)
def test_deepspeed_takes_the_dict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deepspeed_config_module: Any,
    template: Path,
    dtype: str,
    world_size: int,
    cpu_adam: bool,
) -> None:
    plan = plan_of(tmp_path, template, dtype, world_size)
    config = plan.deepspeed(cpu_adam=cpu_adam)
    assert not [value for value in all_values(config) if value is None or value == "auto"]
    assert json.loads(json.dumps(config)) == config

    monkeypatch.setattr(deepspeed_config_module.dist, "get_world_size", lambda *_: world_size)
    taken = deepspeed_config_module.DeepSpeedConfig(config)
    accumulation = 16 // world_size
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
    understood = taken.zero_config.model_dump(by_alias=True)
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


def names_of(model: Any) -> set[str]:
    """Fields of one of DeepSpeed's schemas, and their aliases."""
    fields = model.model_fields.items()
    return {name for pair in fields for name in (pair[0], pair[1].alias) if name}


@pytest.mark.parametrize(
    "ours, module, theirs",
    [
        ("ZeroOptimization", "deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
        (
            "OffloadOptimizer",
            "deepspeed.runtime.zero.offload_config",
            "DeepSpeedZeroOffloadOptimizerConfig",
        ),
        (
            "OffloadParam",
            "deepspeed.runtime.zero.offload_config",
            "DeepSpeedZeroOffloadParamConfig",
        ),
        ("TensorboardMonitor", "deepspeed.monitor.config", "TensorBoardConfig"),
        ("WandbMonitor", "deepspeed.monitor.config", "WandbConfig"),
        ("CsvMonitor", "deepspeed.monitor.config", "CSVConfig"),
        ("CometMonitor", "deepspeed.monitor.config", "CometConfig"),
        ("CommsLogger", "deepspeed.comm.config", "CommsLoggerConfig"),
    ],
)
def test_every_field_is_one_of_deepspeeds(ours: str, module: str, theirs: str) -> None:
    known = names_of(getattr(pytest.importorskip(module), theirs))
    assert set(getattr(schema, ours).model_fields) - known == set()


def test_every_section_is_held_against_deepspeed() -> None:
    monitors = {"tensorboard", "wandb", "csv_monitor", "comet"}
    pytest.importorskip("deepspeed.monitor.config")
    from deepspeed.monitor.config import DeepSpeedMonitorConfig

    assert monitors == set(DeepSpeedMonitorConfig.model_fields) & set(Template.model_fields)
    from deepspeed.runtime import constants

    known = {value for value in vars(constants).values() if isinstance(value, str)}
    rest = set(Template.model_fields) - monitors - {"zero_optimization", "comms_logger"}
    assert rest - known == set()


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


def test_an_optimizer_in_two_places_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(
        '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}'
    )
    assert only_fault(
        lambda: check_template(load_template(file), "t.json", load_small(tmp_path))
    ) == (
        "t.json: zero_optimization.offload_optimizer.ratio: is 0.5: DeepSpeed leaves the part on "
        "the device out of its checkpoints. Set it to 1.0, or leave it out."
    )


def test_without_monitors_nothing_is_reported_and_the_rest_stays(tmp_path: Path) -> None:
    config = {name: {"enabled": True} for name in ("tensorboard", "csv_monitor", "wandb", "comet")}
    assert without_monitors(config | {"train_batch_size": 8}) == {"train_batch_size": 8}
