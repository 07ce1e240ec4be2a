"""From a recipe and a template to the dict that `deepspeed.initialize` gets.

DeepSpeed's defaults move between releases (gradient_clipping became 1.0), so every value that
matters is written out, and the result is saved with the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_ds.config.derive import Derived
from gpt2_ds.config.optimizers import optimizer_named
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.section import Section
from gpt2_ds.config.template import Template


def _written(section: Section | None) -> dict[str, Any]:
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
            fused AdamW (beside Muon: torch's AdamW).
    """
    dtype = recipe.precision.dtype
    optimizer = optimizer_named(recipe.optimizer.name)
    half = dtype != "fp32"
    accumulate = "fp32" if recipe.precision.grad_accum_dtype == "fp32" else dtype
    config: dict[str, Any] = {
        "train_batch_size": derived.global_batch_size,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_batch_size,
        "gradient_accumulation_steps": derived.gradient_accumulation_steps,
        "gradient_clipping": recipe.optimizer.gradient_clipping,
        "steps_per_print": 2**62,  # this project prints its own progress
        "optimizer": {
            "type": optimizer.deepspeed_type,
            "params": optimizer.params(recipe.optimizer, cpu_adam),
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
    config["zero_optimization"] |= optimizer.zero_optimization
    if half:
        config["data_types"] = {"grad_accum_dtype": accumulate}
        # Without it, DeepSpeed 0.19.8 casts fp32 sums back to 16 bits to add them over the ranks.
        config["communication_data_type"] = accumulate
    if template.csv_monitor:
        config["csv_monitor"] |= {"output_path": str(run_dir), "job_name": "csv"}
    if template.wandb and template.wandb.enabled and not template.wandb.group:
        config["wandb"]["group"] = run_dir.name
    return config


def without_monitors(config: dict[str, Any]) -> dict[str, Any]:
    """The same dict, for an engine that reports nothing anywhere."""
    monitors = {"tensorboard", "csv_monitor", "wandb", "comet"}
    return {key: value for key, value in config.items() if key not in monitors}
