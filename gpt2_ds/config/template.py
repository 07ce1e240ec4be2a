"""The template: a file of `ds_configs/`, holding only memory, speed and communication.

DeepSpeed ignores a misspelt top-level key and accepts "auto" (seen in 0.19.8), so a template may
only hold keys that are known here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt2_ds.config.section import NotNegative, Positive, PositiveFloat, Section

Host = Literal["cpu", "nvme"]


class OffloadOptimizer(Section):
    """Where the optimizer's state lives when not on the device."""

    device: Host
    """cpu or nvme."""
    nvme_path: str | None = None
    """Folder on a local NVMe disk; for device nvme."""
    buffer_count: NotNegative = 4
    """Buffers of the NVMe pipeline."""
    pin_memory: bool = True
    """Page-locked host memory: faster copies."""
    fast_init: bool = False
    """Fill the files at the start in fewer, larger pieces (nvme)."""
    pipeline_read: bool = False
    """Read the next part while the optimizer works (nvme)."""
    pipeline_write: bool = False
    """Write the last part while the optimizer works (nvme)."""
    ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the parameters that are updated on the host."""


class OffloadParam(Section):
    """Where the parameters live when no layer needs them (stage 3)."""

    device: Host
    """cpu or nvme."""
    nvme_path: str | None = None
    """Folder on a local NVMe disk; for device nvme."""
    buffer_count: NotNegative = 5
    """Buffers of the NVMe pipeline."""
    buffer_size: Positive = 100_000_000
    """Elements of one buffer (nvme)."""
    max_in_cpu: NotNegative = 1_000_000_000
    """Elements kept in host memory (nvme)."""
    pin_memory: bool = True
    """Page-locked host memory: faster copies."""


class ZeroOptimization(Section):
    """How model states are partitioned over the data-parallel ranks."""

    stage: Annotated[int, Field(ge=0, le=3)]  # a Literal would take true and 1.0
    """0: nothing, 1: optimizer, 2: and gradients, 3: and parameters."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer: no fragmentation."""
    reduce_scatter: bool = True
    """Reduce-scatter instead of all-reduce for averaging."""
    reduce_bucket_size: Positive = 500_000_000
    """Elements reduced at a time."""
    allgather_partitions: bool = True
    """All-gather instead of broadcasts for updated parameters."""
    allgather_bucket_size: Positive = 500_000_000
    """Elements gathered at a time."""
    overlap_comm: bool = False
    """Reduce gradients while backward runs."""
    use_multi_rank_bucket_allreduce: bool = True
    """Stage 1-2: reduce what several ranks own in one call."""
    ignore_unused_parameters: bool = True
    """Stage 1-2: a parameter without a gradient is not an error; a GPT-2 has none."""
    load_from_fp32_weights: bool = True
    """A checkpoint's fp32 weights are taken, not its rounded ones."""
    round_robin_gradients: bool = False
    """Stage 1-2: spread the copies to the host over the ranks."""
    sub_group_size: Positive = 1_000_000_000
    """Stage 3: elements the optimizer updates at a time."""
    stage3_prefetch_bucket_size: NotNegative = 50_000_000
    """Elements fetched ahead."""
    stage3_param_persistence_threshold: NotNegative = 100_000
    """Parameters with fewer elements stay whole on every rank."""
    stage3_model_persistence_threshold: NotNegative = 2**63 - 1
    """Elements that stay whole on every rank, all such parameters together."""
    stage3_max_live_parameters: NotNegative = 1_000_000_000
    """Elements gathered on a device at one time."""
    stage3_max_reuse_distance: NotNegative = 1_000_000_000
    """Parameters that are used again within so many elements are not released."""
    stage3_gather_16bit_weights_on_model_save: bool = False
    """Only for DeepSpeed's own save_16bit_model."""
    stage3_module_granularity_threshold: NotNegative = 0
    """Modules with fewer elements a submodule are fetched whole; 0: none."""
    stage3_use_all_reduce_for_fetch_params: bool = False
    """Fetch with an all-reduce instead of an all-gather."""
    stage3_allgather_sequential: bool = False
    """Fetch parameters one by one: smaller buffers, more calls."""
    memory_efficient_linear: bool = True
    """Stage 3: linear layers that keep no gathered weight for backward."""
    zero_hpz_partition_size: Positive = 1
    """Stage 3: ranks of the secondary partition (ZeRO++); usually the GPUs of a node."""
    zero_quantized_weights: bool = False
    """ZeRO++: gather weights in 8 bits. Changes the result a little. Needs GPUs."""
    zero_quantized_gradients: bool = False
    """ZeRO++: reduce gradients in 4 bits. Changes the result a little. Needs GPUs."""
    offload_optimizer: OffloadOptimizer | None = None
    """Optimizer state on the host or on disk."""
    offload_param: OffloadParam | None = None
    """Parameters on the host or on disk; stage 3."""


class AsyncIO(Section):
    """How files on the NVMe disk are read and written."""

    block_size: Positive = 1_048_576
    """Bytes of one request."""
    queue_depth: Positive = 8
    """Requests under way at one time."""
    intra_op_parallelism: Positive = 1
    """Threads of a rank."""
    single_submit: bool = False
    """One request a system call."""
    overlap_events: bool = True
    """Send the next requests while the last ones are under way."""
    use_gds: bool = False
    """From disk to GPU past host memory; needs NVIDIA's GPUDirect Storage."""


class TensorboardMonitor(Section):
    """TensorBoard events; on by default, in the run directory."""

    enabled: bool = True
    """Write them."""


class WandbMonitor(Section):
    """Weights & Biases; needs `pip install wandb`."""

    enabled: bool
    """Send to it."""
    project: str = "gpt2_ds"
    """Project name."""
    group: str | None = None
    """Group name."""
    team: str | None = None
    """Entity."""


class CsvMonitor(Section):
    """One CSV file a metric, in the run directory."""

    enabled: bool
    """Write them."""


class CometMonitor(Section):
    """Comet; needs `pip install comet_ml` and its key in the environment."""

    enabled: bool
    """Send to it."""
    samples_log_interval: Positive = 1
    """Metrics are sent once in so many samples."""
    project: str | None = None
    """Project name."""
    workspace: str | None = None
    """Workspace name."""
    experiment_name: str | None = None
    """Name of the experiment."""


class CommsLogger(Section):
    """Log every collective: for looking into a slow run."""

    enabled: bool
    """Log."""
    verbose: bool = False
    """Each call at once."""
    prof_all: bool = True
    """All operations."""
    debug: bool = False
    """Name the caller."""


class Template(Section):
    """A file of `ds_configs/`: memory, speed and communication only."""

    zero_optimization: ZeroOptimization
    """ZeRO."""
    aio: AsyncIO | None = None
    """Files of NVMe offload."""
    prescale_gradients: bool = False
    """Divide gradients before the reduction instead of after."""
    gradient_predivide_factor: PositiveFloat = 1.0
    """Divide by this before the reduction, by the rest after."""
    wall_clock_breakdown: bool = False
    """Print the time of forward, backward and step."""
    tensorboard: TensorboardMonitor = TensorboardMonitor()
    """TensorBoard."""
    wandb: WandbMonitor | None = None
    """Weights & Biases."""
    csv_monitor: CsvMonitor | None = None
    """CSV files."""
    comet: CometMonitor | None = None
    """Comet."""
    comms_logger: CommsLogger | None = None
    """Collectives."""


def for_a_small_model(template: Template) -> Template:
    """The template with parts that cut up a model of some 100,000 parameters.

    Its own sizes would leave every parameter whole on every rank, in one bucket and one group of
    the optimizer: nothing of ZeRO would be tried.
    """
    sizes: dict[str, int] = {"reduce_bucket_size": 50_000, "allgather_bucket_size": 50_000}
    if template.zero_optimization.stage == 3:
        sizes |= {
            "sub_group_size": 20_000,
            "stage3_prefetch_bucket_size": 10_000,
            "stage3_param_persistence_threshold": 100,
            "stage3_max_live_parameters": 30_000,
            "stage3_max_reuse_distance": 30_000,
        }
    zero = template.zero_optimization.model_copy(update=sizes)
    return template.model_copy(update={"zero_optimization": zero})
