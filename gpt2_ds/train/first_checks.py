"""What is checked, with all ranks there, before a model is built."""

from __future__ import annotations

from typing import get_args

from gpt2_ds.config.errors import Fault, UserError, agreed, user_error
from gpt2_ds.config.launcher import nodes, rank, world_size
from gpt2_ds.config.recipe import Dtype
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.config.template_needs import check_needs
from gpt2_ds.data.corpus import Corpus
from gpt2_ds.parallel.agreement import gathered
from gpt2_ds.parallel.compiled_ops import can_build, clear_stale_lock
from gpt2_ds.parallel.process_group import device_title, local_device, supports
from gpt2_ds.train.terminal import say


def verify_together(corpus: Corpus) -> None:
    """Hash the shards, shared among the ranks; what one rank finds ends them all. Collective.

    Raises:
        UserError: a shard is damaged, or the ranks see different datasets at one path.
    """
    faults: tuple[Fault, ...] = ()
    try:
        corpus.verify(rank(), world_size())
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
        raise agreed(UserError(*faults))
    if any(part for _, part in found):
        raise agreed(UserError(*(fault for _, part in found for fault in part)))


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


def use_cpu_adam(plan: RunPlan) -> bool:
    """DeepSpeedCPUAdam under offload, where every rank can build its op; torch's AdamW otherwise.

    Collective. A remote shell may lack what is on the PATH of another: with two kinds of optimizer
    the ranks would wait for each other in different collectives.
    """
    if plan.template.zero_optimization.offload_optimizer is None:
        return False
    if lacking := [i for i, able in enumerate(gathered(can_build())) if not able]:
        where = "" if len(lacking) == world_size() else f" on rank {lacking[0]}, too"
        say(
            "optimizer: torch's AdamW on the host; DeepSpeedCPUAdam needs a C++ compiler and "
            f"ninja{where}"
        )
        return False
    say("optimizer: DeepSpeedCPUAdam; compiling it takes a few minutes the first time")
    clear_stale_lock("cpu_adam", nodes=nodes())
    return True
