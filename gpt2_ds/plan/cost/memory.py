"""The memory that a run will need on one GPU and one machine, part by part."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.plan.cost.activations import backward_bytes, kept_bytes, logits_bytes
from gpt2_ds.plan.cost.gpus import Cluster
from gpt2_ds.plan.printing import GIB
from gpt2_ds.plan.states import (
    FP32_BYTES,
    model_states,
    number_bytes,
    reduced_bytes,
)

_ALLREDUCED = 500_000_000
"""Elements that DeepSpeed 0.19.8 flattens to all-reduce at stages 0 and 1
(`MEMORY_OPT_ALLREDUCE_SIZE`); no key of a template says it."""

_FIXED_BYTES = GIB * 3 // 2
"""CUDA's context and libraries 0.5 GiB, NCCL's channels and workspaces 1 GiB; ours, about."""

_FRAGMENTATION = 0.05
"""Of what comes and goes; ours: torch's allocator leaves holes."""

USABLE = 0.96
"""Of the memory of a GPU or machine; the rest is left free, for these are estimates."""

_PROCESS_BYTES = 4 * GIB
"""Host memory of a rank's Python, torch and CUDA; ours, about."""


@dataclass(frozen=True)
class DeviceParts:
    """Bytes on one GPU at the widest moment of a step.

    Args:
        parameters: weights that are always there.
        gathered: weights of other ranks that stage 3 has fetched.
        gradients: as they add up.
        optimizer: fp32 weights and moments.
        buckets: gradients on their way to the other ranks.
        activations: what forward keeps for backward.
        logits: at the loss's widest moment, of all rows or of `model.loss_chunk_size`.
        working: what one block's backward needs beyond the logits, which are gone by then; or the
            update beyond them and the activations.
        overhead: CUDA, NCCL, holes in the allocator.
    """

    parameters: int
    gathered: int
    gradients: int
    optimizer: int
    buckets: int
    activations: int
    logits: int
    working: int
    overhead: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Need:
    """What one setting needs.

    Args:
        device: bytes on one GPU.
        host_bytes: of one machine: offloaded states and its processes.
        disk_bytes: on a local disk of one machine (NVMe offload).
    """

    device: DeviceParts
    host_bytes: int
    disk_bytes: int

    def fits(self, cluster: Cluster) -> bool:
        """Whether the GPU and the machine hold it, with 4 % left."""
        enough = self.host_bytes <= USABLE * cluster.gpu.node_memory_bytes
        return enough and self.fits_gpu(cluster)

    def fits_gpu(self, cluster: Cluster) -> bool:
        """Whether the GPU does, whatever the machine's own memory."""
        return self.device.total <= USABLE * cluster.gpu.memory_bytes


def need(plan: RunPlan, cluster: Cluster, micro_batch_size: int, *, checkpointing: bool) -> Need:
    """What a run needs with this micro-batch, whatever the recipe's own is."""
    states = model_states(plan)
    kept = kept_bytes(plan, micro_batch_size, checkpointing=checkpointing)
    logits = logits_bytes(plan, micro_batch_size)
    # Each comes when the one before is gone, and takes what it needs from its room.
    backward = backward_bytes(plan, micro_batch_size, checkpointing=checkpointing)
    working = max(0, backward - logits, _update_bytes(plan) - kept - logits)
    gathered, buckets = _gathered_bytes(plan), _bucket_bytes(plan)
    moving = gathered + buckets + kept + logits + working
    device = DeviceParts(
        parameters=states.parameters.device_bytes,
        gathered=gathered,
        gradients=states.gradients.device_bytes,
        optimizer=states.optimizer.device_bytes,
        buckets=buckets,
        activations=kept,
        logits=logits,
        working=working,
        overhead=_FIXED_BYTES + int(_FRAGMENTATION * moving),
    )
    # The copy of a checkpoint that is written behind is made only where memory allows.
    host = states.total.host_bytes + _PROCESS_BYTES
    return Need(device, cluster.node_ranks * host, cluster.node_ranks * states.total.disk_bytes)


def _gathered_bytes(plan: RunPlan) -> int:
    """Weights that stage 3 keeps fetched: as many as the template allows, one block at least."""
    zero = plan.template.zero_optimization
    if zero.stage < 3 or (plan.derived.world_size == 1 and zero.offload_param is None):
        return 0
    least = max(plan.shape.n_block_matrices, plan.shape.n_largest)
    least += zero.stage3_prefetch_bucket_size
    live = max(least, zero.stage3_max_live_parameters)
    return min(plan.derived.n_parameters, live) * number_bytes(plan)


def _bucket_bytes(plan: RunPlan) -> int:
    """Gradients on their way, in backward; a matrix larger than the bucket goes by itself."""
    zero = plan.template.zero_optimization
    number, reduced = number_bytes(plan), reduced_bytes(plan)
    if zero.stage == 0 or (zero.stage == 1 and reduced != number):
        return 0  # all at once, after backward: _update_bytes
    largest = plan.shape.n_largest * (number + reduced)
    if zero.stage == 3:
        return zero.reduce_bucket_size * reduced + largest
    if zero.offload_optimizer is not None:
        largest += plan.shape.n_largest * number  # a buffer for the way to the host
    buffers = zero.reduce_bucket_size * number * (2 if zero.overlap_comm else 1)
    return max(buffers + zero.reduce_bucket_size * (reduced if reduced != number else 0), largest)


def _update_bytes(plan: RunPlan) -> int:
    """What reducing after backward and the update need beside the states."""
    zero, n, ranks = (
        plan.template.zero_optimization,
        plan.derived.n_parameters,
        plan.derived.world_size,
    )
    if zero.offload_optimizer is not None:
        return 0
    if zero.stage == 0 or (zero.stage == 1 and reduced_bytes(plan) != number_bytes(plan)):
        return min(n, _ALLREDUCED) * reduced_bytes(plan) if ranks > 1 else 0
    # The share's gradients once more, in fp32; at stage 3 of one sub-group at a time.
    share = n // ranks
    return FP32_BYTES * (min(share, zero.sub_group_size) if zero.stage == 3 else share)
