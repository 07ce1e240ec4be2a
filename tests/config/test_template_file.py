"""What is said of a template that is not right in itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config import template_file as template_files
from gpt2_ds.config.recipe_file import flatten
from gpt2_ds.config.template_file import GONE, RECIPE_KEYS, load_template
from tests.config.small_recipe import faults_of, load_small


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
        (with_zero('"zzz": 1'), "no such key. Known here: aio, comet, comms_logger, csv_monit"),
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
            "belongs in the recipe. Set precision.grad_accum_dtype there instead.",
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
    how = 'is "auto", which DeepSpeed silently accepts. Write the value.'
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
        f"{key}: belongs in the recipe. Set {RECIPE_KEYS[key]} there instead."
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


def removed_keys(config: Any) -> dict[str, str]:
    """DeepSpeed's own table of keys that it had once."""
    low = {
        f"zero_optimization.{key}": text for key, text in config._REMOVED_ZERO_CONFIG_KEYS.items()
    }
    return config._REMOVED_TOP_LEVEL_CONFIG_KEYS | low


def test_every_key_that_deepspeed_removed_is_named() -> None:
    assert set(GONE) == set(removed_keys(pytest.importorskip("deepspeed.runtime.config")))


@pytest.mark.parametrize("key", GONE)
def test_a_key_that_is_gone_is_said_to_be(tmp_path: Path, key: str) -> None:
    section, _, name = key.rpartition(".")
    text = zero(f'"stage": 3, "{name}": 8') if section else with_zero(f'"{key}": {{}}')
    (said,) = refused(tmp_path, text)
    assert said == f"{key}: is gone from DeepSpeed 0.19.8 (DeepSpeed #8489). {GONE[key]}"


def test_keys_that_are_gone_elsewhere_are_unknown_here(tmp_path: Path) -> None:
    (said,) = refused(tmp_path, with_zero('"mics_shard_size": 8'))
    assert said.startswith("mics_shard_size: no such key. ")


@pytest.mark.parametrize(
    "text, also",
    [
        (
            '"optimizer": {"type": "OneBitAdam"}',
            ", and OneBitAdam is gone from DeepSpeed 0.19.8 (DeepSpeed #8489). Set optimizer ",
        ),
        ('"optimizer": {"type": "AdamW"}', ". Set optimizer there instead."),
        ('"optimizer": {"type": 1}', ". Set optimizer there instead."),
        (
            '"activation_checkpointing": {"partition_activations": true}',
            ", and partition_activations shares them among ranks of tensor parallelism, which is "
            "not used here (DeepSpeed #3779). Set activation_checkpointing there instead.",
        ),
        ('"activation_checkpointing": {"partition_activations": false}', ". Set activation_"),
        (
            '"scheduler": {"type": "WarmupCosineLR"}',
            ", and WarmupCosineLR takes the first two steps at a learning rate of 0 "
            "(DeepSpeed #5287). Set schedule there instead.",
        ),
        ('"scheduler": {"type": "OneCycle"}', ". Set schedule there instead."),
    ],
)
def test_a_key_of_the_recipe_that_is_wrong_there_too(tmp_path: Path, text: str, also: str) -> None:
    (said,) = refused(tmp_path, with_zero(text))
    assert said.partition(": ")[2].startswith(f"belongs in the recipe{also}")


def test_deepspeed_has_none_of_the_optimizers_that_are_said_to_be_gone() -> None:
    config = pytest.importorskip("deepspeed.runtime.config")
    assert not set(config.DEEPSPEED_OPTIMIZERS) & set(template_files._GONE_OPTIMIZERS)
    assert "adamw" in config.DEEPSPEED_OPTIMIZERS
