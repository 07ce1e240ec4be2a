"""What is checked, with all ranks there, before a model is built."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import get_args

from gpt2_ds.config.errors import Fault, UserError, on_all_ranks, user_error
from gpt2_ds.config.lint.template_needs import check_needs
from gpt2_ds.config.recipe import Dtype
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.config.template import Template
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.health.health import stop_reasons
from gpt2_ds.health.stop_request import StopRequest
from gpt2_ds.health.watchdog import Watchdog
from gpt2_ds.hosts.launcher import local_ranks, nodes, rank, world_size
from gpt2_ds.parallel.agreement import gathered, until_all
from gpt2_ds.parallel.compiled_ops import can_build, clear_stale_lock
from gpt2_ds.parallel.process_group import device_title, local_device, supports
from gpt2_ds.preflight.fast import fast_checks
from gpt2_ds.record.terminal import say, warn_on_rank_0


def check_together(
    plan: RunPlan, corpus: Corpus, watchdog: Watchdog, stop: StopRequest, *, writes: bool
) -> bool:
    """All that is checked here. Collective.

    Args:
        plan: the run.
        corpus: what it reads.
        watchdog: over all ranks; it gets a heartbeat.
        stop: whether this rank was asked to stop.
        writes: the run writes into its directory; a replay does not.

    Returns:
        Whether some rank was asked to stop meanwhile.

    Raises:
        UserError: the device, a shard of the data, or a machine does not fit.
    """
    check_device(plan)
    for warning in plan.warnings:
        warn_on_rank_0(str(warning.fault))
    verify_together(corpus, watchdog, stop)
    watchdog.mark(0, "checking machines")
    fast_checks(plan, corpus.fingerprint, writes=writes)
    if reasons := stop_reasons(stop):
        say(f"Stopped before the first step ({reasons}). The same command begins again.")
    return bool(reasons)


def verify_together(corpus: Corpus, watchdog: Watchdog, stop: StopRequest) -> None:
    """Hash the shards, shared among the ranks; what one rank finds ends them all. Collective.

    It may take minutes: a rank that is asked to stop skips the rest of it.

    Raises:
        UserError: a shard is damaged, or the ranks see different datasets at one path.
    """
    faults: tuple[Fault, ...] = ()
    checking = watchdog.heartbeat.during("checking data")
    verifying = ThreadPoolExecutor(1, "verify").submit(
        corpus.verify, rank(), world_size(), checking
    )
    until_all(lambda: verifying.done() or stop.reason is not None, checking)
    try:
        if verifying.done():
            verifying.result()
    except UserError as error:
        faults = error.faults
    found = gathered((corpus.fingerprint, faults))
    if others := [i for i, (seen, _) in enumerate(found) if seen != found[0][0]]:
        faults = (
            Fault(
                ", ".join(dataset.address for dataset in corpus.datasets.values()),
                f"rank {others[0]} sees other data there than rank 0",
                "Copy one dataset to every machine, or put it on a disk that all share.",
            ),
        )
        raise on_all_ranks(UserError(*faults))
    if any(part for _, part in found):
        raise on_all_ranks(UserError(*(fault for _, part in found for fault in part)))


def check_device(plan: RunPlan) -> None:
    """Refuse a number format or a template that this device cannot train with.

    Raises:
        UserError: names the formats that it can train in, or what the template needs.
    """
    dtype, formats = plan.recipe.precision.dtype, get_args(Dtype)
    if not supports(dtype):
        raise user_error(
            plan.loaded.where("precision.dtype"),
            f"{dtype} cannot be trained on {device_title()}",
            f"Set it to {' or '.join(name for name in formats if supports(name))}.",
        )
    on_cpu = local_device().type == "cpu"
    check_needs(plan.template, plan.template_file, on_cpu=on_cpu)


def use_cpu_adam(template: Template) -> bool:
    """DeepSpeedCPUAdam under offload, where every rank can build its op; torch's AdamW otherwise.

    Collective. A remote shell may lack what is on the PATH of another: with two kinds of optimizer
    the ranks would wait for each other in different collectives.
    """
    if template.zero_optimization.offload_optimizer is None:
        return False
    if lacking := [i for i, able in enumerate(gathered(can_build())) if not able]:
        where = "" if len(lacking) == world_size() else f" on rank {lacking[0]}, too"
        say(
            "optimizer: torch's AdamW on the host; DeepSpeedCPUAdam needs a C++ compiler and "
            f"ninja{where}"
        )
        return False
    say("optimizer: DeepSpeedCPUAdam; compiling it takes a few minutes the first time")
    return True


def clear_stale_locks(template: Template) -> None:
    """Remove the locks that dead builds left of the ops that a template loads. Collective.

    One rank of each machine does it, before any of them builds: a later one could take the lock of
    a build that has just begun for a stale lock.
    """
    if rank() == local_ranks().start:
        for op in compiled_ops_of(template):
            clear_stale_lock(op, nodes=nodes())
    gathered(None)


def compiled_ops_of(template: Template) -> list[str]:
    """DeepSpeed's names of the ops that it compiles and loads for a template (0.19.8)."""
    zero = template.zero_optimization
    offloads = [offload for offload in (zero.offload_optimizer, zero.offload_param) if offload]
    ops = {
        "cpu_adam": zero.offload_optimizer is not None,
        "async_io": any(offload.device == "nvme" for offload in offloads),
        "quantizer": zero.zero_quantized_weights or zero.zero_quantized_gradients,
    }
    return [op for op, loads in ops.items() if loads]
