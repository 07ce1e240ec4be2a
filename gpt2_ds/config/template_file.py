"""From a template file to a checked `Template`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.config.recipe_file import LoadedRecipe, fault_of, flatten
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
    except (RecursionError, ValueError):  # ValueError: a number of more than 4,300 digits
        what = "nested too deep, or holds a number too long, to be a template"
        raise user_error(file, what, "Compare it with the files of ds_configs/.") from None
    if not isinstance(values, dict):
        raise user_error(file, "not a JSON object", "Write {...}, as the files of ds_configs/ do.")
    faults = [
        Fault(f"{file}: {key}", "belongs into the recipe", f"Set {RECIPE_KEYS[key]} there instead.")
        for key in values
        if key in RECIPE_KEYS
    ]
    automatic = {
        key
        for key, value in flatten(values)
        if value == "auto" and key.partition(".")[0] not in RECIPE_KEYS
    }
    faults += [
        Fault(f"{file}: {key}", 'is "auto", which DeepSpeed takes in silence', "Write the value.")
        for key in sorted(automatic)
    ]
    try:
        template = Template.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            known = detail["type"] != "extra_forbidden"
            if detail["loc"][0] in RECIPE_KEYS:
                continue
            if known and ".".join(map(str, detail["loc"])) in automatic:
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
        UserError: 16-bit training at stage 0; an optimizer that lives in two places.
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
    offload = template.zero_optimization.offload_optimizer
    if offload is not None and offload.ratio < 1.0:
        # Read in DeepSpeed 0.19.8: the state of the part on the device is never saved.
        raise user_error(
            f"{file}: zero_optimization.offload_optimizer.ratio",
            f"is {offload.ratio}: DeepSpeed leaves the part on the device out of its checkpoints",
            "Set it to 1.0, or leave it out.",
        )
