"""Model states of one rank, and what a checkpoint and a run take on disk: closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpt2_ds.config.optimizers import Which, optimizer_named
from gpt2_ds.config.run_plan import RunPlan

FP32_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Args:
        device_bytes: on its device; on a CPU host memory too.
        host_bytes: in host memory.
        disk_bytes: on a disk of its machine (NVMe).
    """

    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Memory) -> Memory:
        """Both together."""
        return Memory(
            self.device_bytes + other.device_bytes,
            self.host_bytes + other.host_bytes,
            self.disk_bytes + other.disk_bytes,
        )


class ModelStates(NamedTuple):
    """What one rank holds all the time, at the widest moment of an optimizer step.

    Args:
        parameters: weights in the recipe's format.
        gradients: of all micro-steps so far.
        optimizer: its own fp32 weights, and Adam's two moments or Muon's one.
    """

    parameters: Memory
    gradients: Memory
    optimizer: Memory

    @property
    def total(self) -> Memory:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


def number_bytes(plan: RunPlan) -> int:
    """Bytes of one number in the recipe's format."""
    return FP32_BYTES if plan.recipe.precision.dtype == "fp32" else 2


def reduced_bytes(plan: RunPlan) -> int:
    """Bytes of one gradient as it adds up over micro-steps and ranks."""
    fp32 = plan.recipe.precision.grad_accum_dtype == "fp32"
    return FP32_BYTES if fp32 else number_bytes(plan)


def model_states(plan: RunPlan) -> ModelStates:
    """What one rank holds of the model, its gradients and the optimizer.

    The shares are ZeRO's (https://arxiv.org/abs/1910.02054, section 3.1): the optimizer's part is
    shared among the ranks from stage 1, the gradients from 2, the weights from 3. What is held of
    each is what the tensors of DeepSpeed 0.19.8 add up to (tests/plan/test_states.py):

    - from stage 1 the optimizer has fp32 weights of its own, also where the model is in fp32;
    - at stages 0 and 1, in 16 bits, backward's gradients stay beside those that add up in fp32;
      from stage 2 each goes into its rank's share at once;
    - stage 3 keeps whole, beside its share, each parameter below its persistence threshold;
    - an offloaded optimizer takes the gradients with it, and holds them twice: as they add up, and
      in fp32 for the update. At stages 1 and 2 it has its share of the weights again, on the host,
      and 16-bit gradients that add up in fp32 do so on the device.

    Not counted: activations, buckets, copies of a checkpoint that is being written, and what Muon
    copies for an update.
    """
    zero, derived = plan.template.zero_optimization, plan.derived
    n, ranks = derived.n_parameters, derived.world_size
    number, reduced = number_bytes(plan), reduced_bytes(plan)
    weights = n * number // (ranks if zero.stage >= 3 else 1)
    whole = plan.shape.n_below(zero.stage3_param_persistence_threshold)
    persistent = whole * number if zero.stage >= 3 else 0
    if zero.stage >= 3 and zero.zero_hpz_partition_size > 1:
        persistent += n * number // zero.zero_hpz_partition_size  # hpZ's second share
    both = reduced + (number if reduced != number and zero.stage <= 1 else 0)
    gradients = n * both // (ranks if zero.stage >= 2 else 1)
    masters = n * FP32_BYTES if zero.stage >= 1 else 0
    optimizer = (masters + _moments(plan)) // (ranks if zero.stage >= 1 else 1)
    states = ModelStates(Memory(weights + persistent), Memory(gradients), Memory(optimizer))
    return _offloaded(plan, states, weights)


def _moments(plan: RunPlan) -> int:
    """Bytes of all that the optimizer knows of past gradients."""
    shape, zero, n = plan.shape, plan.template.zero_optimization, plan.derived.n_parameters
    in_blocks = shape.n_layer * shape.n_block_matrices
    numbers: dict[Which, int] = {
        "all": n,
        "matrices of blocks": in_blocks,
        "others": n - in_blocks,
    }
    # There DeepSpeed 0.19.8 keeps the momentum in the format in which gradients arrive.
    as_gradients = zero.stage == 2 or (zero.stage == 1 and reduced_bytes(plan) == 2)
    as_gradients &= zero.offload_optimizer is None
    gradient_bytes = number_bytes(plan) if as_gradients else FP32_BYTES
    return sum(
        numbers[state.of] * (gradient_bytes if state.as_gradients else FP32_BYTES)
        for state in optimizer_named(plan.recipe.optimizer.name).states
    )


def _offloaded(plan: RunPlan, states: ModelStates, weights: int) -> ModelStates:
    """The same states, where the template wants them."""
    zero, derived = plan.template.zero_optimization, plan.derived
    n, ranks = derived.n_parameters, derived.world_size
    parameters, gradients, optimizer = states
    if zero.offload_param is not None:
        on_device = parameters.device_bytes - weights
        if zero.offload_param.device == "cpu":
            parameters = Memory(on_device, weights)
        else:
            parameters = Memory(on_device, disk_bytes=weights)
    if zero.offload_optimizer is not None:
        adding_up, for_update = n * reduced_bytes(plan) // ranks, n * FP32_BYTES // ranks
        held, on_device = optimizer.device_bytes, 0
        if zero.stage < 3:
            held += n * number_bytes(plan) // ranks
            if reduced_bytes(plan) != number_bytes(plan):
                on_device = adding_up * (ranks if zero.stage == 1 else 1)
                adding_up = 0
            elif derived.gradient_accumulation_steps == 1:
                adding_up = 0
        if zero.offload_optimizer.device == "cpu":
            gradients = Memory(on_device, adding_up + for_update)
            optimizer = Memory(0, held)
        else:
            gradients = Memory(on_device, adding_up, for_update)
            optimizer = Memory(disk_bytes=held)
    return ModelStates(parameters, gradients, optimizer)


def checkpoint_bytes(plan: RunPlan) -> int:
    """About the size of one checkpoint.

    Counted, a parameter: Adam's two moments, or Muon's one, and the fp32 weight that the optimizer
    holds (at stage 0 the weight itself, once); from stage 1 to 2 also the weight in the recipe's
    format.
    """
    stage = plan.template.zero_optimization.stage
    per_parameter = FP32_BYTES + (number_bytes(plan) if 1 <= stage <= 2 else 0)
    return plan.derived.n_parameters * per_parameter + _moments(plan)


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
