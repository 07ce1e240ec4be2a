"""From a template (`ds_configs/*.json`) and a recipe to the dict that `deepspeed.initialize` gets.

DeepSpeed ignores a misspelt top-level key, accepts "auto" and moves its defaults between releases
(seen in 0.19.8). So a template may only hold keys that are known here, and the result holds every
value that matters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from gpt2_ds.config.derive import Derived
from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.config.load import LoadedRecipe, fault_of, flatten
from gpt2_ds.config.recipe import NotNegative, Positive, Recipe, Section
from gpt2_ds.config.yaml_document import read_text

Host = Literal["cpu", "nvme"]


class OffloadOptimizer(Section):
    """Where the optimizer's state lives when not on the device."""

    device: Host
    """cpu or nvme."""
    nvme_path: str | None = None
    """Folder on a local NVMe disk; for device nvme."""
    buffer_count: NotNegative = 4
    """Buffers of the NVMe pipeline."""
    pin_memory: bool = True
    """Page-locked host memory: faster copies."""
    pipeline_read: bool = False
    """Read the next part while the optimizer works (nvme)."""
    pipeline_write: bool = False
    """Write the last part while the optimizer works (nvme)."""
    ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the parameters that are updated on the host."""


class OffloadParam(Section):
    """Where the parameters live when no layer needs them (stage 3)."""

    device: Host
    """cpu or nvme."""
    nvme_path: str | None = None
    """Folder on a local NVMe disk; for device nvme."""
    buffer_count: NotNegative = 5
    """Buffers of the NVMe pipeline."""
    buffer_size: Positive = 100_000_000
    """Elements of one buffer (nvme)."""
    max_in_cpu: NotNegative = 1_000_000_000
    """Elements kept in host memory (nvme)."""
    pin_memory: bool = True
    """Page-locked host memory: faster copies."""


class ZeroOptimization(Section):
    """How model states are partitioned over the data-parallel ranks."""

    stage: Literal[0, 1, 2, 3]
    """0: nothing, 1: optimizer, 2: and gradients, 3: and parameters."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer: no fragmentation."""
    reduce_scatter: bool = True
    """Reduce-scatter instead of all-reduce for averaging."""
    reduce_bucket_size: Positive = 500_000_000
    """Elements reduced at a time."""
    allgather_partitions: bool = True
    """All-gather instead of broadcasts for updated parameters."""
    allgather_bucket_size: Positive = 500_000_000
    """Elements gathered at a time."""
    overlap_comm: bool = False
    """Reduce gradients while backward goes on."""
    round_robin_gradients: bool = False
    """Stage 1-2: spread the copies to the host over the ranks."""
    sub_group_size: Positive = 1_000_000_000
    """Stage 3: elements the optimizer updates at a time."""
    stage3_prefetch_bucket_size: NotNegative = 50_000_000
    """Elements fetched ahead."""
    stage3_param_persistence_threshold: NotNegative = 100_000
    """Parameters with fewer elements stay whole on every rank."""
    stage3_max_live_parameters: NotNegative = 1_000_000_000
    """Elements gathered on a device at one time."""
    stage3_max_reuse_distance: NotNegative = 1_000_000_000
    """Parameters that are used again within so many elements are not released."""
    stage3_gather_16bit_weights_on_model_save: bool = False
    """Only for DeepSpeed's own save_16bit_model."""
    zero_hpz_partition_size: Positive = 1
    """Stage 3: ranks of the secondary partition (ZeRO++); usually the GPUs of a node."""
    zero_quantized_weights: bool = False
    """ZeRO++: gather weights in 8 bits. Changes the result a little. Needs GPUs."""
    zero_quantized_gradients: bool = False
    """ZeRO++: reduce gradients in 4 bits. Changes the result a little. Needs GPUs."""
    offload_optimizer: OffloadOptimizer | None = None
    """Optimizer state on the host or on disk."""
    offload_param: OffloadParam | None = None
    """Parameters on the host or on disk; stage 3."""


class TensorboardMonitor(Section):
    """TensorBoard events; on by default, in the run directory."""

    enabled: bool = True
    """Write them."""


class WandbMonitor(Section):
    """Weights & Biases; needs `pip install wandb`."""

    enabled: bool
    """Send to it."""
    project: str = "gpt2_ds"
    """Project name."""
    group: str | None = None
    """Group name."""
    team: str | None = None
    """Entity."""


class CsvMonitor(Section):
    """One CSV file a metric, in the run directory."""

    enabled: bool
    """Write them."""


class CometMonitor(Section):
    """Comet; needs `pip install comet_ml` and its key in the environment."""

    enabled: bool
    """Send to it."""
    samples_log_interval: Positive = 1
    """Metrics are sent once in so many samples."""
    project: str | None = None
    """Project name."""
    workspace: str | None = None
    """Workspace name."""
    experiment_name: str | None = None
    """Name of the experiment."""


class CommsLogger(Section):
    """Log every collective: for looking into a slow run."""

    enabled: bool
    """Log."""
    verbose: bool = False
    """Each call at once."""
    prof_all: bool = True
    """All operations."""
    debug: bool = False
    """Name the caller."""


class Template(Section):
    """A file of `ds_configs/`: memory, speed and communication only."""

    zero_optimization: ZeroOptimization
    """ZeRO."""
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    """Format of reduced gradients; absent: the one they accumulate in."""
    prescale_gradients: bool = False
    """Divide gradients before the reduction instead of after."""
    gradient_predivide_factor: Annotated[float, Field(gt=0.0)] = 1.0
    """Divide by this before the reduction, by the rest after."""
    wall_clock_breakdown: bool = False
    """Print the time of forward, backward and step."""
    tensorboard: TensorboardMonitor = TensorboardMonitor()
    """TensorBoard."""
    wandb: WandbMonitor | None = None
    """Weights & Biases."""
    csv_monitor: CsvMonitor | None = None
    """CSV files."""
    comet: CometMonitor | None = None
    """Comet."""
    comms_logger: CommsLogger | None = None
    """Collectives."""


RECIPE_KEYS = {
    "train_batch_size": "batch.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_size",
    "gradient_accumulation_steps": "batch.global_batch_tokens",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "precision.dtype",
    "fp16": "precision.dtype",
    "data_types": "precision.grad_accum_dtype",
    "activation_checkpointing": "activation_checkpointing",
    "steps_per_print": "logging.interval_steps",
}
"""DeepSpeed's keys that a recipe owns, and the recipe's key for each."""


def load_template(path: Path) -> Template:
    """Read and check a template.

    Raises:
        UserError: every mistake at once: not JSON, unknown keys, "auto", keys that belong into the
            recipe, wrong values.
    """
    file = str(path)
    try:
        values = json.loads(
            read_text(path, "template", ".json"), object_pairs_hook=_refuse_duplicates
        )
    except json.JSONDecodeError as error:
        raise user_error(f"{file}:{error.lineno}", f"not JSON: {error.msg}", "Mend it.") from None
    except _DuplicateKeyError as error:
        raise user_error(f"{file}: {error}", "given twice", "Remove one of them.") from None
    if not isinstance(values, dict):
        raise user_error(file, "not a JSON object", "Write {...}, as the files of ds_configs/ do.")
    faults = [
        Fault(f"{file}: {key}", "belongs into the recipe", f"Set {RECIPE_KEYS[key]} there instead.")
        for key in values.keys() & RECIPE_KEYS.keys()
    ]
    automatic = {key for key, value in flatten(values) if value == "auto"}
    faults += [
        Fault(f"{file}: {key}", 'is "auto", which DeepSpeed takes in silence', "Write the value.")
        for key in sorted(automatic)
    ]
    try:
        template = Template.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            if detail["loc"][0] in RECIPE_KEYS or ".".join(map(str, detail["loc"])) in automatic:
                continue
            faults.append(fault_of(detail, Template, file, {}))
    else:
        faults += _offload_faults(template, file)
    if faults:
        raise UserError(*faults)
    return template


class _DuplicateKeyError(Exception):
    """A JSON object names a key twice."""


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _DuplicateKeyError(key)
        seen[key] = value
    return seen


def _offload_faults(template: Template, file: str) -> list[Fault]:
    zero, faults = template.zero_optimization, []
    needed = {"offload_optimizer": 1, "offload_param": 3}
    for name, stage in needed.items():
        offload = getattr(zero, name)
        where = f"{file}: zero_optimization.{name}"
        if offload and zero.stage < stage:
            what = f"needs stage {stage} or more, and stage is {zero.stage}"
            faults.append(Fault(where, what, f"Set stage to {stage} or remove {name}."))
        if offload and offload.device == "nvme" and not offload.nvme_path:
            faults.append(
                Fault(f"{where}.nvme_path", "missing for device nvme", "Name a folder on a disk.")
            )
    return faults


def check_template(template: Template, file: str, loaded: LoadedRecipe) -> None:
    """Refuse what DeepSpeed gets wrong in silence for this recipe.

    Raises:
        UserError: 16-bit training at stage 0.
    """
    dtype = loaded.recipe.precision.dtype
    if template.zero_optimization.stage == 0 and dtype != "fp32":
        # Seen in DeepSpeed 0.19.8: FP16_Optimizer.initialize_optimizer_states takes an Adam step
        # with zero gradients, so the first update is 0.73 of what it should be.
        raise user_error(
            f"{file}: zero_optimization.stage",
            f"is 0 with precision.dtype {dtype}: DeepSpeed takes a false Adam step at the start",
            "Use --template ds_configs/zero1.json, which costs nothing more.",
        )


_Section = TypeVar("_Section", bound=Section)


def _written(section: _Section | None) -> dict[str, Any]:
    return section.model_dump(exclude_none=True) if section else {}


def deepspeed_config(
    recipe: Recipe, template: Template, derived: Derived, run_dir: Path, *, cpu_adam: bool
) -> dict[str, Any]:
    """Exactly what `deepspeed.initialize` gets.

    Args:
        recipe: what to train.
        template: how to shard it.
        derived: batch sizes and accumulation.
        run_dir: where TensorBoard events and CSV files go.
        cpu_adam: update with DeepSpeedCPUAdam (offload; its op must build) instead of torch's
            fused AdamW.
    """
    dtype = recipe.precision.dtype
    optimizer = recipe.optimizer
    half = dtype != "fp32"
    accumulate = "fp32" if recipe.precision.grad_accum_dtype == "fp32" else dtype
    update = {"torch_adam": False} if cpu_adam else {"torch_adam": True, "fused": True}
    config: dict[str, Any] = {
        "train_batch_size": derived.global_batch_size,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_batch_size,
        "gradient_accumulation_steps": derived.gradient_accumulation_steps,
        "gradient_clipping": optimizer.gradient_clipping,
        "steps_per_print": 2**62,  # this project prints its own progress
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.lr,
                "betas": optimizer.betas,
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                **update,
            },
        },
        "bf16": {"enabled": dtype == "bf16"},
        "fp16": {
            "enabled": dtype == "fp16",
            "loss_scale": 0,  # dynamic
            "initial_scale_power": recipe.precision.initial_loss_scale_power,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        **_written(template),
        "zero_force_ds_cpu_optimizer": cpu_adam,
        "tensorboard": {
            **_written(template.tensorboard),
            "output_path": str(run_dir.parent),
            "job_name": run_dir.name,
        },
    }
    if half:
        config["data_types"] = {"grad_accum_dtype": accumulate}
    if template.csv_monitor:
        config["csv_monitor"] |= {"output_path": str(run_dir), "job_name": "csv"}
    if template.wandb and template.wandb.enabled and not template.wandb.group:
        config["wandb"]["group"] = run_dir.name
    return config
