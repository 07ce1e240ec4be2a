"""What `launch/train.py --dry-run` does."""

from __future__ import annotations

import signal
from pathlib import Path

from gpt2_ds.config.errors import EXIT_DONE
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.hosts.node_commands import describe_nodes
from gpt2_ds.plan.show import describe


def show_run(plan: RunPlan, hostfile: Path | None, command: list[str]) -> int:
    """Print the run, on rank 0, and what each node of a hostfile would start.

    Args:
        plan: the run.
        hostfile: as the user named it.
        command: of this start.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `train.py --dry-run | head` must not fail
    if rank() == 0:
        nodes = [describe_nodes(hostfile, command)] if hostfile else []
        print(describe(plan), *nodes, sep="\n")
    return EXIT_DONE
