"""The time of a whole run: its steps, with its ramp."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.plan.cost.gpus import Cluster
from gpt2_ds.plan.cost.speed import Sharing, StepTime, Work, step_time
from gpt2_ds.plan.states import number_bytes, reduced_bytes


def work_of(plan: RunPlan) -> Work:
    """What a plan's micro-steps compute."""
    model = plan.recipe.model
    return Work(
        n_parameters=plan.derived.n_parameters,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        seq_length=plan.recipe.data.seq_length,
        vocab_rows=plan.derived.padded_vocab_size,
        checkpointing=plan.recipe.activation_checkpointing.enabled,
        number_bytes=number_bytes(plan),
        reduced_bytes=reduced_bytes(plan),
    )


def sharing_of(plan: RunPlan) -> Sharing:
    """How a plan's template shares it."""
    zero = plan.template.zero_optimization
    return Sharing(
        stage=zero.stage,
        overlap=zero.overlap_comm,
        hpz=zero.zero_hpz_partition_size,
        quantized_weights=zero.zero_quantized_weights,
        quantized_gradients=zero.zero_quantized_gradients,
        optimizer_on=zero.offload_optimizer.device if zero.offload_optimizer else None,
        parameters_on=zero.offload_param.device if zero.offload_param else None,
    )


def run_seconds(
    plan: RunPlan,
    cluster: Cluster,
    micro_batch_size: int,
    *,
    checkpointing: bool,
) -> tuple[StepTime, float]:
    """A full-size step, and all steps of the run with its ramp; validation is not counted."""
    work = replace(work_of(plan), checkpointing=checkpointing)
    sharing, levels = sharing_of(plan), plan.derived.batches.levels
    total, full = 0.0, StepTime(0.0, 0.0, 0.0)
    ends = [level.first_step for level in levels[1:]] + [plan.derived.steps + 1]
    for level, end in zip(levels, ends, strict=True):
        per_rank = level.global_batch_size // cluster.count
        micro = gcd(per_rank, micro_batch_size)  # as `Batches.share`
        full = step_time(
            work,
            sharing,
            cluster,
            micro_batch_size=micro,
            micro_steps=per_rank // micro,
        )
        total += max(0, end - level.first_step) * full.total
    return full, total
