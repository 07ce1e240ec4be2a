"""From a template file to a checked `Template`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.config.recipe_file import fault_of, flatten
from gpt2_ds.config.template import Template
from gpt2_ds.config.yaml_document import read_text

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
    "communication_data_type": "precision.grad_accum_dtype",
    "activation_checkpointing": "activation_checkpointing",
    "steps_per_print": "logging.interval_steps",
}
"""DeepSpeed's keys that a recipe owns, and the recipe's key for each."""

_ANOTHER_SIZE = "Remove it: the same command on another number of ranks resumes the run."
_NOTHING = "Remove it; nothing here takes its place."
GONE = {
    "elasticity": _ANOTHER_SIZE,
    "curriculum_learning": "Remove it; batch.ramp and data.phases of a recipe change a run midway.",
    "compression_training": _NOTHING,
    "quantize_training": _NOTHING,
    "eigenvalue": _NOTHING,
    "sparse_attention": "Remove it: attention here is dense.",
    "sparse_gradients": _NOTHING,
    "graph_harvesting": "Remove it; model.compile of the recipe compiles the model.",
    "progressive_layer_drop": _NOTHING,
    "amp": "Remove it; precision.dtype of the recipe chooses the format.",
    "nebula": "Remove it; checkpoint.write_behind of the recipe saves behind the training.",
    "zero_optimization.mics_shard_size": "MiCS partitions within a group of ranks; "
    "ds_configs/zero3_hpz.json keeps the traffic of weights within one.",
    "zero_optimization.mics_hierarchical_params_gather": "Remove it, with mics_shard_size.",
    "zero_optimization.zeropp_loco_param": "Remove it: gradients are quantized without it.",
}
"""Keys that DeepSpeed 0.19.8 no longer has (its issue #8489), and what to do."""

_GONE = "is gone from DeepSpeed 0.19.8 (DeepSpeed #8489)"
_GONE_OPTIMIZERS = ("onebitadam", "zerooneadam", "onebitlamb")


def load_template(path: Path) -> Template:
    """Read and check a template.

    Raises:
        UserError: every mistake at once: not JSON, unknown keys, "auto", keys that belong in the
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
    except (RecursionError, ValueError):  # ValueError: a number of more than 4,300 digits
        what = "nested too deep, or holds a number too long, to be a template"
        raise user_error(file, what, "Compare it with the files of ds_configs/.") from None
    if not isinstance(values, dict):
        raise user_error(file, "not a JSON object", "Write {...}, as the files of ds_configs/ do.")
    faults = [
        Fault(
            f"{file}: {key}",
            "belongs in the recipe" + _also_wrong(key, value),
            f"Set {RECIPE_KEYS[key]} there instead.",
        )
        for key, value in values.items()
        if key in RECIPE_KEYS
    ]
    automatic = {
        key
        for key, value in flatten(values)
        if value == "auto" and key.partition(".")[0] not in RECIPE_KEYS
    }
    faults += [
        Fault(f"{file}: {key}", 'is "auto", which DeepSpeed silently accepts', "Write the value.")
        for key in sorted(automatic)
    ]
    try:
        template = Template.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            known = detail["type"] != "extra_forbidden"
            key = ".".join(map(str, detail["loc"]))
            if detail["loc"][0] in RECIPE_KEYS or (known and key in automatic):
                continue
            if not known and key in GONE:
                faults.append(Fault(f"{file}: {key}", _GONE, GONE[key]))
                continue
            faults.append(fault_of(detail, Template, file, {}))
    else:
        faults += _offload_faults(template, file)
    if faults:
        raise UserError(*faults)
    return template


def _also_wrong(key: str, value: Any) -> str:
    """What else is wrong with a key that a recipe owns: it is useless, or gone."""
    if not isinstance(value, dict):
        return ""
    kind = str(value.get("type", ""))
    if key == "optimizer" and kind.lower() in _GONE_OPTIMIZERS:
        return f", and {kind} {_GONE}"
    if key == "activation_checkpointing" and value.get("partition_activations") is True:
        return (
            ", and partition_activations shares them among ranks of tensor parallelism, which is "
            "not used here (DeepSpeed #3779)"
        )
    if key == "scheduler" and kind.startswith("Warmup"):
        return f", and {kind} takes the first two steps at a learning rate of 0 (DeepSpeed #5287)"
    return ""


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
