"""What a recipe needs of disk and memory, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_ds.config.run_plan import RunPlan

_FP32_BYTES = 4
_ADAM_BYTES = 8  # two fp32 moments


@dataclass(frozen=True)
class Memory:
    """Bytes of model states of one rank.

    Args:
        device_bytes: on its device; on a CPU host memory too.
        host_bytes: offloaded to host memory.
    """

    device_bytes: int
    host_bytes: int


def model_states(plan: RunPlan) -> Memory:
    """What one rank holds of the model, its gradients and the optimizer.

    Counted, a parameter: the weight in the recipe's format; its gradient in the same; below fp32
    also the gradient that micro-steps add up to (`precision.grad_accum_dtype`) and the optimizer's
    own fp32 weight; Adam's two moments in fp32. ZeRO shares the optimizer's part among the ranks
    from stage 1, the gradients from 2, the weights from 3. Not counted: activations, buckets,
    buffers of communication, what Python and torch take themselves, and copies of a checkpoint
    that is being written.

    Source: ZeRO, https://arxiv.org/abs/1910.02054, section 3.1.
    """
    zero, precision, ranks = (
        plan.template.zero_optimization,
        plan.recipe.precision,
        plan.derived.world_size,
    )
    n = plan.derived.n_parameters
    half = precision.dtype != "fp32"
    number_bytes = 2 if half else _FP32_BYTES
    accumulated_bytes = _FP32_BYTES if half and precision.grad_accum_dtype == "fp32" else 0
    weights = n * number_bytes // (ranks if zero.stage >= 3 else 1)
    gradients = n * (number_bytes + accumulated_bytes) // (ranks if zero.stage >= 2 else 1)
    optimizer_bytes = _ADAM_BYTES + (_FP32_BYTES if half else 0)
    optimizer = n * optimizer_bytes // (ranks if zero.stage >= 1 else 1)
    device, host = weights + gradients + optimizer, 0
    if zero.offload_optimizer is not None:
        device -= optimizer
        host += optimizer if zero.offload_optimizer.device == "cpu" else 0
    if zero.offload_param is not None:
        device -= weights
        host += weights if zero.offload_param.device == "cpu" else 0
    return Memory(device, host)


def checkpoint_bytes(plan: RunPlan) -> int:
    """About the size of one checkpoint.

    Counted, a parameter: Adam's two moments and the fp32 weight that the optimizer holds (at stage
    0 the weight itself, once); from stage 1 to 2 also the weight in the recipe's format.
    """
    stage, dtype = plan.template.zero_optimization.stage, plan.recipe.precision.dtype
    per_parameter = _ADAM_BYTES + _FP32_BYTES
    if 1 <= stage <= 2:
        per_parameter += _FP32_BYTES if dtype == "fp32" else 2
    return plan.derived.n_parameters * per_parameter


def disk_bytes(plan: RunPlan) -> int:
    """About what the run directory holds at most: all checkpoints that are kept.

    Counted: `checkpoint.keep_last`, one more while it is being written, the best, and those that
    `checkpoint.keep_every_steps` keeps for good. Not counted: logs, events and metrics.
    """
    kept = plan.recipe.checkpoint
    count = kept.keep_last + 1 + kept.keep_best
    if kept.keep_every_steps:
        count += plan.last_step // kept.keep_every_steps
    return count * checkpoint_bytes(plan)
