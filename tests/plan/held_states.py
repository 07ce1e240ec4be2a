"""What a real engine's tensors add up to, by part."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.model import GPT2Config
from tests.conftest import REPOSITORY
from tests.small_run import small_plan

_MASTERS = (
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
    "fp32_partitioned_groups_flat",
    "param_buffer_of_bit16_for_cpu_offload_groups",  # ZeRO-Offload's own copy of the weights
)
_BUCKETS = ("ipg_buckets", "temp_grad_buffer_for_cpu_offload", "temp_grad_buffer_for_gpu_offload")


def plan_of(folder: Path, template: str, dtype: str, reduced: str, n_layer: int) -> RunPlan:
    """50,000 parameters a block, the template with small buckets; two micro-steps a step."""
    values = json.loads((REPOSITORY / f"ds_configs/{template}.json").read_text())
    zero = values["zero_optimization"]
    zero["reduce_bucket_size"] = 50_000
    if zero["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = 500
    file = folder / f"{template}_{rank()}.json"
    file.write_text(json.dumps(values))
    half = [] if dtype == "fp32" else [f"precision.grad_accum_dtype={reduced}"]
    sizes = [f"model.n_layer={n_layer}", "model.n_embd=64", f"precision.dtype={dtype}", *half]
    ranks = world_size()
    batch = [f"batch.global_batch_tokens={ranks * 128}", "schedule.total_tokens=20480"]
    return small_plan(folder, folder, *sizes, *batch, template=file, world_size=ranks)


def storages(value: Any, depth: int = 0) -> dict[int, int]:
    """Address -> bytes of the storages of all tensors in a tree of containers and objects."""
    found: dict[int, int] = {}
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    elif depth < 4:
        inner = (
            value.values() if isinstance(value, dict) else getattr(value, "__dict__", {}).values()
        )
        for item in value if isinstance(value, list | tuple) else inner:
            found |= storages(item, depth + 1)
    return found


def alive() -> dict[int, int]:
    """Of every tensor of this process, its gradient and ZeRO-3's share of it.

    What is gone a moment later does not count: gloo's threads let go of what they have sent when
    they come to it.
    """
    first = _tensors()
    time.sleep(0.1 if world_size() > 1 else 0.0)
    return {key: size for key, size in _tensors().items() if first.get(key) == size}


def _tensors() -> dict[int, int]:
    gc.collect()
    found: dict[int, int] = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor):
            parts = [item, getattr(item, "grad", None), getattr(item, "ds_tensor", None)]
            found |= storages([part for part in parts if part is not None])
    return found


def parts(engine: Any, everything: dict[int, int]) -> dict[str, int]:
    """Bytes of parameters, optimizer, gradients (all that nothing else explains) and buckets."""
    optimizer = engine.optimizer
    weights = storages(
        [[p.detach(), getattr(p, "ds_tensor", None)] for p in engine.module.parameters()]
    )
    masters = storages([getattr(optimizer, name, None) for name in _MASTERS])
    moments = storages(list(getattr(optimizer, "optimizer", optimizer).state.values()))
    own = (masters | moments).keys() - weights.keys()
    buckets = storages([getattr(optimizer, name, None) for name in _BUCKETS]).keys()
    rest = everything.keys() - weights.keys() - own - buckets
    return {
        "parameters": sum(weights.values()),
        "optimizer": sum(everything[key] for key in own),
        "gradients": sum(everything[key] for key in rest),
        "buckets": sum(everything[key] for key in buckets if key in everything),
    }


def held(
    folder: Path, cases: list[tuple[str, str, str]], n_layer: int
) -> list[tuple[dict[str, int], RunPlan]]:
    """For each case the largest parts of the second step, between its backwards and updates."""
    from gpt2_ds.parallel.engine import build_engine

    results = []
    gc.collect()
    gc.freeze()  # what was there before is not looked at: a second less each time
    for template, dtype, reduced in cases:
        before = alive()
        plan = plan_of(folder, template, dtype, reduced, n_layer)
        config = plan.deepspeed(cpu_adam=False)
        del config["tensorboard"]
        model = GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))
        engine = build_engine(model, config, seed=1)
        tokens = torch.zeros(2, 32, dtype=torch.int64)
        seen: list[dict[str, int]] = []
        for step in range(2):
            for _ in range(plan.derived.gradient_accumulation_steps):
                loss = engine(tokens, shift_labels=tokens, return_logits=False).loss
                engine.backward(loss)
                del loss
                if step == 1:
                    now = {key: size for key, size in alive().items() if key not in before}
                    now.pop(tokens.untyped_storage().data_ptr())
                    seen.append(parts(engine, now))
                engine.step()
        results.append(({name: max(moment[name] for moment in seen) for name in seen[0]}, plan))
        del engine
    return results
