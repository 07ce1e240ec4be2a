"""A device whose memory is too small for a run: said with what makes it smaller."""

from __future__ import annotations

import platform

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.process_group import device_title


def out_of_memory(plan: RunPlan, error: BaseException) -> RunError:
    """What torch.OutOfMemoryError means for a run, on this rank.

    Args:
        plan: the run.
        error: torch's.
    """
    size = plan.recipe.batch.micro_batch_size
    first, _, rest = str(error).partition(". ")
    wanted = rest.split(". ")[0].rstrip(".")  # "Tried to allocate 2.00 GiB"
    words = f"{first.rstrip('.')}{': ' + wanted[:1].lower() + wanted[1:] if wanted else ''}"
    smaller = [n for n in range(1, size) if size % n == 0]
    fixes = [f"set it to {smaller[-1]} (the global batch stays)"] if smaller else []
    if not plan.recipe.activation_checkpointing.enabled:
        fixes.append("set activation_checkpointing.enabled to true")
    fixes.append("take a template of a higher ZeRO stage or with offload")
    fix = ", or ".join(fixes)
    return RunError(
        f"{plan.loaded.where('batch.micro_batch_size')}: {size} sequences do not fit into "
        f"{device_title()} of rank {rank()} on {platform.node()} with {plan.template_file}: "
        f"{words}. {fix[0].upper()}{fix[1:]}; `python launch/plan.py fit` says what fits."
    )
