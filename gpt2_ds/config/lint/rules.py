"""Combinations of recipe, template and ranks that are known to be wrong, or of no use.

Each rule looks at one of them and names who found it: an upstream issue, a paper, or the release in
which it was seen or read here. What has a mistake in itself is refused earlier: `template_file`.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpt2_ds.config.derive import vocabulary_size
from gpt2_ds.config.errors import UserError
from gpt2_ds.config.lint.findings import Finding, Job
from gpt2_ds.config.lint.muon import muon
from gpt2_ds.config.model_shape import ModelShape
from gpt2_ds.config.numbers import counted, round_up
from gpt2_ds.config.optimizers import optimizer_named
from gpt2_ds.config.recipe_file import LoadedRecipe
from gpt2_ds.config.template import Template, ZeroOptimization

_LOW_STAGES_READ = frozenset(
    {
        "allgather_partitions",
        "allgather_bucket_size",
        "use_multi_rank_bucket_allreduce",
        "round_robin_gradients",
        "ignore_unused_parameters",
    }
)


def _stage_0_in_16_bits(job: Job) -> Iterator[Finding]:
    dtype = job.recipe.precision.dtype
    if job.zero.stage == 0 and dtype != "fp32":
        # FP16_Optimizer.initialize_optimizer_states takes an Adam step with zero gradients, so the
        # first update is 0.73 of what it should be.
        yield job.error(
            "stage",
            f"is 0 with precision.dtype {dtype}: DeepSpeed takes a false Adam step at the start",
            "Use --template ds_configs/zero1.json, which costs nothing more.",
            "seen in 0.19.8; DeepSpeed #7839, #8393",
        )


def _a_part_of_the_optimizer(job: Job) -> Iterator[Finding]:
    offload = job.zero.offload_optimizer
    if offload is not None and offload.ratio < 1.0:
        yield job.error(
            "offload_optimizer.ratio",
            f"is {offload.ratio}: DeepSpeed leaves the part on the device out of its checkpoints",
            "Set it to 1.0, or leave it out.",
            "read in 0.19.8",
        )


def _nvme(job: Job) -> Iterator[Finding]:
    offload, parameters = job.zero.offload_optimizer, job.zero.offload_param
    if offload is not None and offload.device == "nvme":
        optimizer = optimizer_named(job.recipe.optimizer.name)
        tensors = optimizer.tensors_per_parameter
        if job.zero.stage < 3:
            yield job.error(
                "offload_optimizer.device",
                f"is nvme at stage {job.zero.stage}: DeepSpeed swaps to a disk at stage 3 only",
                "Set stage to 3, or device to cpu.",
                "read in 0.19.8",
            )
        if offload.buffer_count < tensors:
            yield job.error(
                "offload_optimizer.buffer_count",
                f"is {offload.buffer_count}, and {optimizer.title} keeps {tensors} tensors a "
                "parameter",
                f"Set it to {tensors} or more.",
                "DeepSpeed's documentation of buffer_count",
            )
        if job.zero.stage == 3:
            yield job.warning(
                "offload_optimizer.device",
                "is nvme: this run cannot resume from its own checkpoints, as DeepSpeed loads "
                "neither step counters nor parts below 1 MiB of them",
                "After a stop, resume with ds_configs/zero3_offload.json, or set it to cpu now; "
                "offload_param may stay on nvme.",
                "seen in 0.19.8: loss 4.671 instead of 4.607 two steps later",
            )
    if parameters is not None and parameters.device == "nvme":
        largest = _largest_part(job)
        if largest > parameters.buffer_size:
            yield job.error(
                "offload_param.buffer_size",
                f"is {parameters.buffer_size} elements, and a rank's part of the largest parameter "
                f"has {largest}",
                f"Set it to at least {largest}.",
                "DeepSpeed #3506",
            )


def _largest_part(job: Job) -> int:
    """Elements of a rank's part of the largest parameter; 0 where the vocabulary is unknown."""
    model = job.recipe.model
    try:
        rows = round_up(vocabulary_size(job.loaded), model.pad_vocab_to_multiple_of)
    except UserError:
        return 0  # reported elsewhere
    return -(-ModelShape.of(model, rows).n_largest // job.world_size)


def _hierarchical_partition(job: Job) -> Iterator[Finding]:
    zero, size = job.zero, job.zero.zero_hpz_partition_size
    if zero.stage < 3 or size == 1:
        return
    group = min(size, job.world_size)  # as DeepSpeed does
    if job.world_size % group:
        yield job.error(
            "zero_hpz_partition_size",
            f"{group} does not divide the {job.world_size} ranks",
            "Set it to the GPUs of a node, the same number on all nodes.",
            "seen in 0.19.8: an AssertionError",
        )
    elif group == job.world_size:
        yield job.warning(
            "zero_hpz_partition_size",
            f"is {size} on {counted(job.world_size, 'rank')}: one group, so the "
            "second copy of the weights saves no traffic between groups",
            "Use --template ds_configs/zero3.json on one node.",
            "https://arxiv.org/abs/2306.10209, section 3.2; DeepSpeedExamples #717",
        )
    if zero.offload_param is not None:
        yield job.error(
            "zero_hpz_partition_size",
            f"is {size} with offload_param, which keeps the second copy in host memory too; on 32 "
            "GPUs the loss then stayed where it was",
            "Use --template ds_configs/zero3_offload.json, or zero3_hpz.json without offload.",
            "DeepSpeed #6926, open",
        )
    elif zero.offload_optimizer is not None:
        yield job.warning(
            "zero_hpz_partition_size",
            f"is {size} with offload_optimizer: the second copy takes up device memory that "
            "offload frees",
            "Use --template ds_configs/zero3_offload.json, or zero3_hpz.json without offload.",
            "DeepSpeed #4851; equal to ZeRO-3 on 4 CPU ranks in 0.19.8",
        )


def _quantized(job: Job) -> Iterator[Finding]:
    zero = job.zero
    if zero.stage < 3:
        return
    if zero.zero_quantized_gradients and not zero.reduce_scatter:
        yield job.error(
            "zero_quantized_gradients",
            "is true with reduce_scatter false, which DeepSpeed asserts",
            "Set reduce_scatter to true.",
            "read in 0.19.8",
        )
    for key, bits in {"zero_quantized_weights": 8, "zero_quantized_gradients": 4}.items():
        if getattr(zero, key):
            yield job.warning(
                key,
                f"is true: what is sent is rounded to {bits} bits, so the losses are no longer "
                "those of other templates",
                "Compare a stretch of the curve with ds_configs/zero3.json first.",
                "https://arxiv.org/abs/2306.10209; DeepSpeed #4886",
            )
    if zero.zero_quantized_weights and job.world_size & (job.world_size - 1):
        yield job.warning(
            "zero_quantized_weights",
            f"is true on {job.world_size} ranks: parts of parameters whose size is not a multiple "
            "of 8 are refused by DeepSpeed",
            "Use a power of two of ranks if the start fails.",
            "DeepSpeed #4386",
        )


def _keys_of_another_stage(job: Job) -> Iterator[Finding]:
    stage = job.zero.stage
    changed = [
        name
        for name, field in ZeroOptimization.model_fields.items()
        if name in job.zero.model_fields_set and getattr(job.zero, name) != field.default
    ]
    for name in changed:
        if name in _LOW_STAGES_READ and stage == 3:
            read_at = "1 and 2"
        elif (name.startswith(("stage3_", "zero_")) or name == "sub_group_size") and stage < 3:
            read_at = "3"
        else:
            continue
        yield job.warning(
            name,
            f"is read at stage {read_at}, and stage is {stage}",
            "Remove it.",
            "read in 0.19.8",
        )


def _sums_in_16_bits(job: Job) -> Iterator[Finding]:
    precision = job.recipe.precision
    if precision.grad_accum_dtype == "same" and job.accumulation > 1:
        yield Finding(
            "warning",
            job.loaded.where("precision.grad_accum_dtype"),
            f"is same: {job.accumulation} micro-steps add up in {precision.dtype}, and small "
            "gradients are lost",
            "Set it to fp32 if 4 bytes a parameter fit.",
            "DeepSpeed #1800",
        )


RULES = (
    _stage_0_in_16_bits,
    _a_part_of_the_optimizer,
    _nvme,
    _hierarchical_partition,
    _quantized,
    _keys_of_another_stage,
    _sums_in_16_bits,
    muon,
)
"""Each checks one thing of a job, in the order of their findings."""


def lint(
    loaded: LoadedRecipe, template: Template, template_file: str, world_size: int
) -> list[Finding]:
    """All that is known to be wrong, or of no use, in a run of so many ranks; errors first.

    Args:
        loaded: the recipe.
        template: how it is partitioned.
        template_file: as the user named it.
        world_size: processes of the job, at least 1.
    """
    job = Job(loaded, template, template_file, world_size)
    found = [finding for rule in RULES for finding in rule(job)]
    return sorted(found, key=lambda finding: finding.severity)  # stable: error, then warning
