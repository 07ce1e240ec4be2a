"""Nothing fits: what would."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from gpt2_ds.config.numbers import divisors
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.plan.cost.gpus import GPUS, Cluster
from gpt2_ds.plan.cost.memory import USABLE, need
from gpt2_ds.plan.cost.settings import Settings
from gpt2_ds.plan.printing import GIB, size

_CHUNK_ROWS = 256


def what_would(found: Settings, cluster: Cluster) -> str:
    """One line for each single change with which some template fits, at one sequence a rank."""
    plans = [setting.plan for setting in found.found if setting.checkpointing]
    if not plans:
        return "No template can be used: see above."
    least = min(found.found, key=lambda setting: setting.need.device.total)
    host_gib = least.need.host_bytes / GIB
    lines = [
        f"Nothing fits. The least that a GPU must hold is {size(least.need.device.total)} "
        f"({least.plan.template_file}, activation checkpointing, {host_gib:,.0f} GiB of host "
        "memory a machine). What would fit:"
    ]
    more = next(
        (count for count in _larger(plans[0], cluster) if _fits(plans, cluster.of(count))), 0
    )
    if more:
        lines.append(f"  --gpus {more}x{cluster.name}")
    others = [name for name in GPUS if _fits(plans, cluster.with_gpus(name))]
    if others:
        lines.append(f"  as many of another kind: {', '.join(others)}")
    if enough := _host_memory(found, cluster):
        lines.append(f"  --node-memory {enough}: machines with so many GiB of host memory")
    chunked = [_chunked(plan) for plan in plans]
    if _fits(chunked, cluster):
        lines.append(f"  --set model.loss_chunk_size={_CHUNK_ROWS}")
    if len(lines) == 1:
        lines.append("  a smaller model, or a shorter data.seq_length")
    return "\n".join(lines)


def _host_memory(found: Settings, cluster: Cluster) -> int | None:
    """GiB of a machine with which some setting would fit; None where the GPUs are too small."""
    needed = [setting.need.host_bytes for setting in found.found if setting.need.fits_gpu(cluster)]
    return ceil(min(needed) / USABLE / GIB) if needed else None


def _larger(plan: RunPlan, cluster: Cluster) -> list[int]:
    """Larger rank counts that divide the batch, in whole machines."""
    return [
        count
        for count in divisors(plan.derived.global_batch_size)
        if count > cluster.count
        and (count <= cluster.gpu.node_gpus or count % cluster.gpu.node_gpus == 0)
    ]


def _fits(plans: list[RunPlan], cluster: Cluster) -> bool:
    return any(
        need(_on(plan, cluster.count), cluster, 1, checkpointing=True).fits(cluster)
        for plan in plans
        if cluster.count % plan.template.zero_optimization.zero_hpz_partition_size == 0
    )


def _on(plan: RunPlan, count: int) -> RunPlan:
    """The same run on another number of ranks, as far as memory goes."""
    steps = plan.derived.global_batch_size // count
    derived = replace(plan.derived, world_size=count, gradient_accumulation_steps=steps)
    return replace(plan, derived=derived)


def _chunked(plan: RunPlan) -> RunPlan:
    model = plan.recipe.model.model_copy(update={"loss_chunk_size": _CHUNK_ROWS})
    recipe = plan.recipe.model_copy(update={"model": model})
    return replace(plan, loaded=replace(plan.loaded, recipe=recipe))
