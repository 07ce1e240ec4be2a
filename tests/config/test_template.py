"""The schema holds what DeepSpeed knows; a shipped template writes all that is read of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config import template as schema
from gpt2_ds.config.template import AsyncIO, Template
from gpt2_ds.config.template_file import load_template
from tests.conftest import REPOSITORY

TEMPLATES = sorted((REPOSITORY / "ds_configs").glob("*.json"))
SHIPPED = {
    "zero0",
    "zero1",
    "zero2",
    "zero2_offload",
    "zero3",
    "zero3_offload",
    "zero3_nvme",
    "zero3_hpz",
    "zero3_hpz_quantized",
}

# Keys of DeepSpeed's that no template writes, and why.
LEFT_OUT = {
    "cpu_offload": "deprecated",
    "cpu_offload_param": "deprecated",
    "cpu_offload_use_pin_memory": "deprecated",
    "stage3_gather_fp16_weights_on_model_save": "deprecated",
    "legacy_stage1": "refused by DeepSpeed",
    "elastic_checkpoint": "deprecated",
    "compute_grad_norm": "newer than 0.19.0; true by default, and clipping needs it",
    "parameter_alignment": "newer than 0.19.0; false by default",
    "zenflow": "another optimizer: updates that come late",
    "leaf_module": "for mixtures of experts",
    "zero_quantized_nontrainable_weights": "for frozen weights; all are trained here",
    "save_muon_momentum_buffer_in_memory": "for Muon",
    "pipeline_loading_checkpoint": "for models that are loaded layer by layer",
    "override_module_apply": "for zero.Init: true by default, and the first weights need it",
    "enable_sanity_checks": "looks for DeepSpeed's own mistakes, slowly",
    "log_trace_cache_warnings": "more output",
    "super_offload": "for Superchips",
    "cpuadam_cores_perc": "for Superchips",
}
STAGES_1_AND_2 = {
    "allgather_partitions",
    "allgather_bucket_size",
    "use_multi_rank_bucket_allreduce",
    "round_robin_gradients",
    "ignore_unused_parameters",
}
STAGE_3 = {"sub_group_size", "memory_efficient_linear", "zero_hpz_partition_size"} | {
    "zero_quantized_weights",
    "zero_quantized_gradients",
    "offload_param",
}


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
    rest = set(Template.model_fields) - monitors - {"zero_optimization", "comms_logger", "aio"}
    assert rest - known == set()


def test_aio_is_deepspeeds() -> None:
    """Its keys and defaults; DeepSpeed reads them from a plain dict, and takes unknown ones."""
    module = pytest.importorskip("deepspeed.runtime.swap_tensor.aio_config")
    assert AsyncIO().model_dump() == module.AIO_DEFAULT_DICT


def written_names(model: Any) -> set[str]:
    """How DeepSpeed's own fields are called in a file."""
    return {field.alias or name for name, field in model.model_fields.items()}


def expected_keys(known: set[str], stage: int) -> set[str]:
    """What a template of that stage writes."""
    if stage == 0:
        return {"stage"}
    third = STAGE_3 | {key for key in known if key.startswith("stage3_")}
    known = known - set(LEFT_OUT)
    return known - (STAGES_1_AND_2 if stage == 3 else third)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_leaves_nothing_to_deepspeeds_defaults(path: Path) -> None:
    config = pytest.importorskip("deepspeed.runtime.zero.config")
    offload = pytest.importorskip("deepspeed.runtime.zero.offload_config")
    values = json.loads(path.read_text())
    zero = values["zero_optimization"]
    expected = expected_keys(written_names(config.DeepSpeedZeroConfig), zero["stage"])
    sections = {
        "offload_optimizer": offload.DeepSpeedZeroOffloadOptimizerConfig,
        "offload_param": offload.DeepSpeedZeroOffloadParamConfig,
    }
    assert expected - set(sections) == set(zero) - set(sections)
    for name, model in sections.items():
        if name not in zero:
            continue
        on_disk = {"nvme_path"} if zero[name]["device"] == "cpu" else set()
        assert written_names(model) - set(LEFT_OUT) - on_disk == set(zero[name])
    on_disk = any(zero.get(name, {}).get("device") == "nvme" for name in sections)
    assert set(values) == {"zero_optimization"} | ({"aio"} if on_disk else set())
    assert set(values.get("aio", {})) == (set(AsyncIO.model_fields) if on_disk else set())


def test_what_is_left_out_is_deepspeeds() -> None:
    """Each name of the list is one that DeepSpeed knows: no stale entry."""
    config = pytest.importorskip("deepspeed.runtime.zero.config")
    offload = pytest.importorskip("deepspeed.runtime.zero.offload_config")
    known = written_names(config.DeepSpeedZeroConfig) | written_names(
        offload.DeepSpeedZeroOffloadOptimizerConfig
    )
    assert set(LEFT_OUT) <= known
    assert known >= STAGES_1_AND_2 | STAGE_3


def test_the_templates_differ_in_what_their_names_say() -> None:
    zero = {path.stem: load_template(path).zero_optimization for path in TEMPLATES}
    assert set(zero) == SHIPPED
    for name, template in zero.items():
        assert template.stage == int(name[4])
        offload = "cpu" if "offload" in name else "nvme" if "nvme" in name else None
        assert getattr(template.offload_optimizer, "device", None) == offload
        parameters = offload if template.stage == 3 else None
        assert getattr(template.offload_param, "device", None) == parameters
        assert template.zero_hpz_partition_size == (8 if "hpz" in name else 1)
        assert template.zero_quantized_weights == ("quantized" in name)
        assert template.zero_quantized_gradients == ("quantized" in name)


def test_the_page_says_something_of_every_template() -> None:
    page = (REPOSITORY / "ds_configs/README.md").read_text()
    for name in SHIPPED:
        assert f"`{name}.json`" in page
