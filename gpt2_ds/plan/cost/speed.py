"""How long an optimizer step takes: a few sums over work, memory traffic and communication.

What is known exactly is counted: the work of a token (`flops`), the bytes that ZeRO sends, the
bytes of the update. What is not is one of the constants below, and the GPU's
`matmul_efficiency`. They were chosen by hand so that llm-foundry's rows of one machine with 2,048
positions (350M to 7B; its A100 80GB and H100 tables) come out about right together; no constant
belongs to a single row. Hopper's efficiency was then lowered from 0.62 to 0.60 with all H100 rows
in view, so those are not blind predictions. tests/plan/cost/published_points.py has every point
with its address, and tests/plan/cost/test_speed.py prints the errors: half are below 10 %.
DeepSpeed with Hugging Face's LLaMA took 1.3 to 1.7 times as long as predicted here, llm.c's
hand-written kernels less. Beyond `MEASURED_GPUS` only ZeRO-3 of 2021 is published: 1.6 to 4.9
times as long. A time with offload, which little published pins down, is good to a factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_ds.plan.cost.gpus import Cluster
from gpt2_ds.plan.flops import flops_per_token

MEASURED_GPUS = 128
"""The most of a published run that `step_time` comes near to."""

MEASURED_KINDS = ("A100-40", "A100-80", "H100-80")
"""GPUs on which a published run was compared."""

DEEPSPEED_TOOK = (1.3, 1.7)
"""Times as long as predicted: published DeepSpeed runs on 8 GPUs, LLaMA 7B of Hugging Face."""

DEEPSPEED_TOOK_FAR = (1.6, 4.9)
"""The same of ZeRO-3 in 2021 on 384 to 2,240 GPUs (arxiv.org/abs/2104.04473, table 2)."""

_ATTENTION = 0.6
"""Speed of fused attention, of a matrix product's; counted with the work of all T x T."""

_BLOCK_PASSES = 125
"""Times that a block's elementwise work (LayerNorms, GELU, biases, additions, casts), forward and
backward, moves a (B, T, C) tensor of 16 bits through the GPU's memory."""

_LOGIT_PASSES = 18
"""The same for a logit in the loss."""

_BLOCK_SECONDS = 0.3e-3
"""Python and kernel launches of a block, forward and backward: what tiny work costs anyway."""

_LINK = 0.75
"""Share of a link's bandwidth that collectives reach."""

_HIDDEN = 0.85
"""Share of overlapped communication that backward and forward can hide."""

_FP32_SLOWDOWN = 16
"""Matrix products in fp32 proper (A100: 19.5 of 312 TFLOP/s, nvidia.com/en-us/data-center/a100)."""

_UPDATE_BYTES = 32
"""Of a parameter, through memory, in an AdamW update: gradient, weight, moments, and back."""

_CPU_UPDATES_PER_SECOND = 0.5e9
"""Parameters that the processors of one machine update; gist.github.com/chenyaofo/d4cd6a20ab4b95cb3
a49491747e2139a (LLaMA 7B, 8 GPUs: 17 to 20 s more a step with offload)."""

_NVME_BYTES_PER_SECOND = 6e9
"""Of one machine's local disks; ours: two good ones."""

_NVME_UPDATE_BYTES = 28
"""Of a parameter: fp32 weight and moments read and written, the gradient read."""


@dataclass(frozen=True)
class Work:
    """What a micro-step computes.

    Args:
        n_parameters: trained numbers.
        n_layer: blocks.
        n_embd: width.
        seq_length: tokens of a sequence.
        vocab_rows: logits of a token.
        checkpointing: blocks run forward twice.
        number_bytes: of a weight or an activation.
        reduced_bytes: of a gradient on its way.
    """

    n_parameters: int
    n_layer: int
    n_embd: int
    seq_length: int
    vocab_rows: int
    checkpointing: bool = False
    number_bytes: int = 2
    reduced_bytes: int = 4


@dataclass(frozen=True)
class Sharing:
    """How ZeRO shares it; names as in a template.

    Args:
        stage: 0 to 3.
        overlap: gradients are reduced while backward runs.
        hpz: ranks of the secondary partition; 1: none.
        quantized_weights: gathered in 8 bits.
        quantized_gradients: reduced in 4 bits.
        optimizer_on: None (the GPU), "cpu" or "nvme".
        parameters_on: the same for the weights.
    """

    stage: int
    overlap: bool = True
    hpz: int = 1
    quantized_weights: bool = False
    quantized_gradients: bool = False
    optimizer_on: str | None = None
    parameters_on: str | None = None


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step.

    Args:
        compute: forward, backward and recomputation.
        communication: that nothing hides.
        update: the optimizer's.
    """

    compute: float
    communication: float
    update: float

    @property
    def total(self) -> float:
        """All three."""
        return self.compute + self.communication + self.update

    def times(self, factor: float) -> StepTime:
        """Each part so many times as long."""
        return StepTime(self.compute * factor, self.communication * factor, self.update * factor)


def step_time(
    work: Work,
    sharing: Sharing,
    cluster: Cluster,
    *,
    micro_batch_size: int,
    micro_steps: int,
) -> StepTime:
    """One optimizer step of so many micro-steps.

    Args:
        work: of the model.
        sharing: by ZeRO.
        cluster: where.
        micro_batch_size: sequences of a micro-step of one rank.
        micro_steps: of the step.
    """
    computing = compute_seconds(work, cluster, micro_batch_size)
    sent = _micro_step_sending(work, sharing, cluster)
    hidden = min(_HIDDEN * sent, computing) if sharing.overlap else 0.0
    return StepTime(
        compute=micro_steps * computing,
        communication=micro_steps * (sent - hidden) + _step_sending(work, sharing, cluster),
        update=_update_seconds(work, sharing, cluster),
    )


def compute_seconds(work: Work, cluster: Cluster, micro_batch_size: int) -> float:
    """Forward and backward of one micro-step on one GPU.

    Matrix products and attention at a share of the peak; elementwise work at the speed of memory,
    which weighs more the narrower the model is.
    """
    gpu, tokens = cluster.gpu, micro_batch_size * work.seq_length
    flops = flops_per_token(work.n_parameters, work.n_layer, work.n_embd, work.seq_length)
    products = 6 * work.n_parameters
    reached = gpu.peak_flops * gpu.matmul_efficiency
    if work.number_bytes == 4:
        reached /= _FP32_SLOWDOWN
    head = 6 * work.vocab_rows * work.n_embd / reached
    blocks = products / reached - head + (flops - products) / (reached * _ATTENTION)
    moved = _BLOCK_PASSES * work.n_layer * work.n_embd * work.number_bytes
    blocks += moved / gpu.memory_bytes_per_second
    head += _LOGIT_PASSES * work.vocab_rows * work.number_bytes / gpu.memory_bytes_per_second
    again = 4 / 3 if work.checkpointing else 1.0
    return max(tokens * blocks * again, work.n_layer * _BLOCK_SECONDS * again) + tokens * head


def _collective_seconds(sent_bytes: float, cluster: Cluster, ranks: int | None = None) -> float:
    """A gather or a scatter of so many bytes among all ranks, over the slower link."""
    ranks = ranks or cluster.count
    if ranks == 1:
        return 0.0
    inside = min(ranks, cluster.node_ranks)
    nodes = -(-ranks // cluster.node_ranks)
    gpu = cluster.gpu
    return (
        max(
            sent_bytes * (1 - 1 / inside) / gpu.link_bytes_per_second,
            sent_bytes * (1 - 1 / nodes) / gpu.node_bytes_per_second,
        )
        / _LINK
    )


def _micro_step_sending(work: Work, sharing: Sharing, cluster: Cluster) -> float:
    """Seconds of what each micro-step sends: gradients from stage 2, weights at stage 3."""
    if sharing.stage < 2:
        return 0.0
    n = work.n_parameters
    # In 4 bits gradients are first exchanged inside each machine and then between them.
    gradients = n * (1 if sharing.quantized_gradients else work.reduced_bytes)
    seconds = _collective_seconds(gradients, cluster)
    if sharing.stage == 3:
        weights = n * (1 if sharing.quantized_weights else work.number_bytes)
        again = sharing.hpz if sharing.hpz > 1 else None
        seconds += _collective_seconds(weights, cluster)
        seconds += _collective_seconds(n * work.number_bytes if again else weights, cluster, again)
    share = n * work.number_bytes / cluster.count
    if sharing.parameters_on == "cpu":
        seconds += 2 * share / cluster.gpu.host_bytes_per_second
    elif sharing.parameters_on == "nvme":
        seconds += 2 * share * cluster.node_ranks / _NVME_BYTES_PER_SECOND
    if sharing.optimizer_on is not None:
        gradient_share = n * work.reduced_bytes / cluster.count
        seconds += gradient_share / cluster.gpu.host_bytes_per_second
    return seconds


def _step_sending(work: Work, sharing: Sharing, cluster: Cluster) -> float:
    """Seconds of what each step sends once, when nothing is left to compute."""
    n, weights = work.n_parameters, work.n_parameters * work.number_bytes
    if sharing.stage == 0:
        return 2 * _collective_seconds(n * work.reduced_bytes, cluster)  # all-reduce
    if sharing.stage == 3:
        return 0.0
    # DeepSpeed 0.19.8 all-reduces at stage 1 where 16-bit gradients add up in fp32.
    reduced = 2 * _collective_seconds(n * work.reduced_bytes, cluster) if sharing.stage == 1 else 0
    return reduced + _collective_seconds(weights, cluster)


def _update_seconds(work: Work, sharing: Sharing, cluster: Cluster) -> float:
    n = work.n_parameters
    if sharing.optimizer_on is None:
        share = n / cluster.count if sharing.stage >= 1 else n
        return share * _UPDATE_BYTES / cluster.gpu.memory_bytes_per_second
    seconds = n / cluster.nodes / _CPU_UPDATES_PER_SECOND
    if sharing.optimizer_on == "nvme":
        seconds += n / cluster.nodes * _NVME_UPDATE_BYTES / _NVME_BYTES_PER_SECOND
    return seconds + n * work.number_bytes / cluster.count / cluster.gpu.host_bytes_per_second
