"""The recipe: every number that changes the result of a run, with its unit.

A recipe is a YAML file in `recipes/`. What follows from it (steps, accumulation, the DeepSpeed
dict) has no key: see `derive.py` and `deepspeed.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gpt2_ds.config.section import (
    Fraction,
    Introduced,
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
)

Dtype = Literal["fp32", "bf16", "fp16"]


class ModelSection(Section):
    """The network. Names are Hugging Face's GPT2Config's."""

    n_layer: Positive
    """Transformer blocks."""
    n_head: Positive
    """Attention heads a block; divides n_embd."""
    n_embd: Positive
    """Width of the residual stream."""
    n_positions: Positive
    """Longest sequence the model can read, in tokens."""
    embd_pdrop: Fraction = 0.0
    """Dropout probability after the embeddings."""
    attn_pdrop: Fraction = 0.0
    """Dropout probability of attention weights."""
    resid_pdrop: Fraction = 0.0
    """Dropout probability before each addition to the residual stream."""
    layer_norm_epsilon: PositiveFloat = 1e-5
    """Added to the variance in LayerNorm."""
    tie_word_embeddings: bool = True
    """The head shares the weight of the token embedding."""
    pad_vocab_to_multiple_of: Positive = 64
    """The embedding has rows up to this multiple: 50257 becomes 50304, which GPUs multiply faster.
    The rows past the vocabulary never enter the loss and are never sampled."""
    loss_chunk_size: NotNegative = 0
    """Rows (tokens of a micro-batch) whose logits exist at one time in training; 0: all of them.
    A smaller number needs less memory and recomputes the logits in backward."""
    compile: bool = False
    """torch.compile the model: a faster step after a first one of 10-60 s. Needs a C++ compiler on
    CPU."""


class TokenizerSection(Section):
    """Which tokenizer made the data."""

    name: Annotated[str, Field(min_length=1)]
    """gpt2, bytes (256 bytes and end-of-text), or the path of a tiktoken ranks file."""


class PrepareSection(Section):
    """How the data is made when `data.path` is not there yet."""

    inputs: Annotated[list[str], Field(min_length=1)]
    """Text files, JSON-lines files or folders; `python-stdlib`: the sources of Python's library."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.001
    """Share of the documents, chosen by their hash, that validates instead of training."""


class SourceSection(Section):
    """One of several datasets that a run mixes."""

    path: Annotated[str, Field(min_length=1)]
    """As data.path."""
    weight: NotNegativeFloat
    """Share of the training samples, to 1 in 10,000; only the ratios of the weights count."""


class PhaseSection(Section):
    """From a point of the run on, other weights."""

    from_tokens: Positive
    """Tokens seen when the phase begins, at the end of a step. What has not begun may change."""
    weights: dict[str, NotNegativeFloat]
    """By the name of the source: as data.sources.NAME.weight."""


SourceName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


class DataSection(Section):
    """What the run reads: one dataset (path) or several (sources)."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """Folder that launch/prepare_data.py wrote, or its address: s3://, gs://, hf://, http(s)://.
    Not part of what makes two recipes differ: the data's own fingerprint is."""
    sources: Annotated[dict[SourceName, SourceSection] | None, Introduced(None)] = None
    """Several datasets, mixed by weight; each goes through its own epochs. Instead of path."""
    phases: list[PhaseSection] = Field(default_factory=list)
    """Other weights of the sources from some point of the run on, in order."""
    seq_length: Positive
    """Tokens of one training sequence; at most model.n_positions."""
    lanes: Annotated[NotNegative, Introduced(0)] = 0
    """0: a sample is drawn from all shards. N: N shards of each dataset are read at a time, each
    shuffled in itself, and then the next ones; for streamed data larger than the cache."""
    document_mask: bool = False
    """Attention stays inside a document, and positions start again with each one."""
    prepare: PrepareSection | None = None
    """Set: the run prepares the data by itself, once. Not set: the folder must exist."""
    cache_path: Annotated[str, Field(min_length=1)] = "data/cache"
    """Folder for the shards of streamed datasets, on a disk of each machine; its ranks share it."""
    cache_gigabytes: PositiveFloat = 100.0
    """Streamed shards never fill more of cache_path than this many times 10^9 bytes."""


class RampSection(Section):
    """Smaller batches at the beginning, in stairs; the learning rate does not see them."""

    start_tokens: Positive
    """Tokens of the first optimizer steps."""
    increment_tokens: Positive
    """What each stair adds; a whole number of them leads to batch.global_batch_tokens."""
    length_tokens: Positive
    """Tokens seen when the batch is full; each stair takes an equal share, in whole steps."""


class BatchSection(Section):
    """How many tokens an update sees. The accumulation follows from it and the world size."""

    global_batch_tokens: Positive
    """Tokens of one optimizer step, over all ranks."""
    micro_batch_size: Positive
    """Sequences of a forward pass of one rank; fewer where a stair of the ramp has too few."""
    ramp: Annotated[RampSection | None, Introduced(None)] = None
    """Not set: every step has global_batch_tokens."""


class OptimizerSection(Section):
    """The update rule. Weight decay acts on matrices only: not on biases and LayerNorm."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw (https://arxiv.org/abs/1711.05101), or muon (https://kellerjordan.github.io/posts/muon):
    Muon for the matrices of the blocks, AdamW for all else."""
    lr: PositiveFloat
    """Peak learning rate of AdamW, reached after the warm-up."""
    muon_lr: Annotated[PositiveFloat | None, Field(validate_default=True), Introduced(None)] = None
    """Peak learning rate of Muon, for example 0.02; it rises and falls as lr does."""
    muon_momentum: Annotated[Fraction | None, Field(validate_default=True), Introduced(None)] = None
    """Decay rate of Muon's momentum, for example 0.95."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    """Decay rates of Adam's first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegativeFloat
    """Share of each matrix taken off per step, times the learning rate."""
    gradient_clipping: NotNegativeFloat
    """Largest global L2 norm of the gradient; 0 switches clipping off."""

    @field_validator("muon_lr", "muon_momentum")
    @classmethod
    def _goes_with_the_name(cls, value: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")  # None: the name itself is wrong, and is reported
        if name is not None and (value is None) == (name == "muon"):
            wanted = "be given" if value is None else "be left out"
            said = f"It should {wanted} where optimizer.name is {name}"
            raise PydanticCustomError("optimizer_name", "{said}", {"said": said})
        return value


class Schedule(Section):
    """What the learning-rate schedules share. All lengths are tokens seen since the start."""

    total_tokens: Positive
    """Length of the run; after the ramp, a multiple of batch.global_batch_tokens."""
    warmup_tokens: NotNegative
    """The learning rate rises linearly until here, above zero from the first step."""


class CosineSchedule(Schedule):
    """Warm-up, half a cosine down to min_lr, then flat."""

    name: Literal["cosine"]
    """Shape of the schedule."""
    decay_tokens: Positive
    """Where the learning rate reaches min_lr; flat after it."""
    min_lr: NotNegativeFloat
    """Learning rate from decay_tokens on."""


class ConstantSchedule(Schedule):
    """Warm-up, then flat at optimizer.lr."""

    name: Literal["constant"]
    """Shape of the schedule."""


class WarmupStableDecaySchedule(Schedule):
    """Warm-up, flat, a line down to min_lr (https://arxiv.org/abs/2404.06395), then flat."""

    name: Literal["wsd"]
    """Shape of the schedule."""
    stable_tokens: Positive
    """Where the decay begins."""
    decay_tokens: Positive
    """Where the learning rate reaches min_lr; flat after it."""
    min_lr: NotNegativeFloat
    """Learning rate from decay_tokens on."""


AnySchedule = Annotated[
    CosineSchedule | ConstantSchedule | WarmupStableDecaySchedule, Field(discriminator="name")
]


class PrecisionSection(Section):
    """Number formats."""

    dtype: Dtype
    """Weights, activations and gradients in forward and backward. The optimizer's are fp32."""
    grad_accum_dtype: Literal["fp32", "same"] = "fp32"
    """Format in which micro-steps' gradients add up; `same`: as dtype (less memory, less exact)."""
    initial_loss_scale_power: Annotated[int, Field(ge=0, le=32)] = 16
    """fp16: the dynamic loss scale starts at two to this power."""


class ActivationCheckpointingSection(Section):
    """Recompute activations in backward instead of keeping them."""

    enabled: bool = False
    """Keep only each block's input: about a third more time, far less memory."""


class EvaluationSection(Section):
    """Validation loss and samples while training."""

    interval_steps: Positive
    """Steps between validations; the last step always validates."""
    tokens: Positive
    """Of the validation split, the same ones each time; a multiple of data.seq_length."""
    sample_prompt: str = ""
    """Text that is continued after each validation; empty: end-of-text alone."""
    sample_tokens: NotNegative = 0
    """Tokens that continue the prompt; 0: no sample."""


class CheckpointSection(Section):
    """Saving. Changes no result."""

    interval_steps: Positive
    """Steps between checkpoints; the last step always saves."""
    keep_last: Positive = 2
    """Newest complete checkpoints that are kept."""
    keep_every_steps: NotNegative = 0
    """Checkpoints of steps that are a multiple of this are kept for good; 0: none."""
    keep_best: bool = True
    """The checkpoint with the lowest validation loss is kept; of those validated at their step."""
    write_behind: bool = True
    """Copy the state into memory and write it while training continues, where memory allows; false:
    training waits until all is written."""
    copy_to: Annotated[str, Field(min_length=1)] | None = None
    """Address of a folder, s3://, gs:// or a path; COPY_TO/<name of the run directory> gets copies
    of the checkpoints (of those that come while one is sent, the newest), and a run resumes
    from there where its own are older, damaged or gone. Two runs need two names."""


class LoggingSection(Section):
    """Progress. Changes no result."""

    interval_steps: Positive = 10
    """Steps between lines on the terminal, in metrics.jsonl and in TensorBoard."""


class HealthSection(Section):
    """What is watched for while training. Changes no result of a run without faults."""

    timeout_seconds: Positive = 1800
    """The job ends, naming the rank that hangs, when no step is done for so long. Longer than the
    slowest single step, and than the first, which may compile."""
    max_skipped_updates: Positive = 5
    """An update whose loss or gradient is not finite is skipped; so many in a row end the run."""
    loss_spike_sigmas: NotNegativeFloat = 8.0
    """A loss this many standard deviations above the mean of the last 100 steps is written down
    with its samples; 0: none is."""
    replica_check_interval_steps: NotNegative = 100
    """Steps between comparisons of the weights that all ranks should hold alike; 0: never."""


class Recipe(Section):
    """All of a run."""

    template: Annotated[str, Field(min_length=1)]
    """Default for --template: a file of ds_configs/. Changes only memory and speed."""
    seed: NotNegative
    """Of the weights, the order of the data, dropout and samples."""
    model: ModelSection
    tokenizer: TokenizerSection
    data: DataSection
    batch: BatchSection
    optimizer: OptimizerSection
    schedule: AnySchedule
    precision: PrecisionSection
    activation_checkpointing: ActivationCheckpointingSection = ActivationCheckpointingSection()
    evaluation: EvaluationSection
    checkpoint: CheckpointSection
    logging: LoggingSection = LoggingSection()
    health: HealthSection = HealthSection()
