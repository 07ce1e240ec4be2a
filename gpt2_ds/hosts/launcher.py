"""What the launcher told this process, and what it kept to itself."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Mapping
from functools import cache

from gpt2_ds.config.errors import user_error
from gpt2_ds.config.numbers import counted
from gpt2_ds.hosts.process import ancestors, program_of

MASTER_PORT = "29500"
"""The port of the rendezvous, unless another is given; deepspeed's own."""

_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # Slurm's: batch scripts and interactive shells are above


def adopt_launcher_variables() -> None:
    """Take this rank's number from srun or mpirun, where one of them started it.

    The launchers of DeepSpeed and torch set RANK, WORLD_SIZE, LOCAL_RANK and a LOCAL_SIZE; here
    they are set from the names that srun and mpirun use. Without a launcher nothing is changed.

    Raises:
        UserError: no address for the rendezvous; ranks of one node that do not follow each
            other, or do not see its devices.
    """
    if "RANK" in os.environ:
        return
    given = os.environ
    if "OMPI_COMM_WORLD_RANK" in given:  # before Slurm: within it, mpirun starts its helpers by it
        ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        theirs = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        for name, word in zip(ours, theirs, strict=True):
            os.environ[name] = given[f"OMPI_COMM_WORLD_{word}"]
        fix = "Add to mpirun: -x MASTER_ADDR=HOST -x MASTER_PORT=29500, HOST the first node."
        _check_rendezvous("mpirun", fix)
    elif _is_task_of_srun(given):
        tasks_here = [int(number) for number in given["SLURM_GTIDS"].split(",")]
        os.environ |= {
            "RANK": given["SLURM_PROCID"],
            "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": given["SLURM_LOCALID"],
            "LOCAL_SIZE": str(len(tasks_here)),
        }
        fix = "Type before srun: `export MASTER_ADDR=$(scontrol show hostnames | head -n 1)`."
        _check_rendezvous("srun", fix)
        _check_tasks(tasks_here)


def _is_task_of_srun(given: Mapping[str, str]) -> bool:
    """Not the shell of a batch script, which sees SLURM_PROCID=0 and the job's task count too."""
    step = given.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP and "SLURM_GTIDS" in given


def _check_rendezvous(launcher: str, fix: str) -> None:
    if world_size() == 1:
        return
    if not os.environ.get("MASTER_ADDR"):
        what = f"is not set, and {launcher} started {world_size()} ranks: it is the address of "
        what += "their rendezvous"
        raise user_error("MASTER_ADDR", what, fix)
    os.environ.setdefault("MASTER_PORT", MASTER_PORT)


def _check_tasks(tasks_here: list[int]) -> None:
    """Refuse ways of srun to place tasks and devices that this project does not reckon with."""
    if tasks_here != list(range(tasks_here[0], tasks_here[0] + len(tasks_here))):
        numbers = ", ".join(str(number) for number in tasks_here)
        raise user_error(
            "srun",
            f"placed ranks {numbers} on one node, which do not follow each other",
            "Give it --distribution=block.",
        )
    devices = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    if 0 < len(devices) < len(tasks_here):
        raise user_error(
            "srun",
            f"shows this rank {len(devices)} of the devices of its node (CUDA_VISIBLE_DEVICES="
            f"{','.join(devices)}), and started {counted(len(tasks_here), 'rank')} there",
            f"Show each rank all of them: --gpus-per-node={len(tasks_here)} in place of "
            "--gpus-per-task or --gpu-bind.",
        )


def rank() -> int:
    """This process's number among all; 0 when started without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of the job; 1 when started without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes of this job on this machine; the launchers of DeepSpeed and torch name it."""
    return int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))


def local_ranks() -> range:
    """The ranks on this machine.

    Where nodes have unlike numbers of slots, DeepSpeed 0.19.8 sets LOCAL_RANK = RANK % slots,
    which says nothing of the first rank here: its launcher's own words do.
    """
    slots, node = _deepspeed_nodes()
    if slots:
        counts = list(slots.values())
        first = sum(counts[:node])
        return range(first, first + counts[node])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    first = rank() - local_rank
    return range(first, first + max(local_world_size(), local_rank + 1))


def nodes() -> int:
    """Machines of the job."""
    slots, _ = _deepspeed_nodes()
    return len(slots) or -(-world_size() // local_world_size())


def hosts_of_ranks() -> list[str] | None:
    """The host of each rank, by rank, in the launcher's words; None where it does not tell.

    The `deepspeed` launcher and srun tell. No rank has to be there for it.
    """
    slots, _ = _deepspeed_nodes()
    if slots:
        return [host for host, count in slots.items() for _ in range(count)]
    given = os.environ
    if not _is_task_of_srun(given) or given["SLURM_PROCID"] != str(rank()):
        return None  # of another launcher, which srun may have started
    hosts = _expanded(given.get("SLURM_STEP_NODELIST", ""))
    counts = tasks_per_node(given.get("SLURM_STEP_TASKS_PER_NODE", ""))
    found = [host for host, count in zip(hosts, counts, strict=False) for _ in range(count)]
    return found if len(found) == world_size() else None


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form of tasks on each node, written out.

    >>> tasks_per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or "1")
    return found


def _expanded(node_list: str) -> list[str]:
    """Slurm's short form of host names (`gpu[01-03,7]`), written out; none without Slurm."""
    command = ["scontrol", "show", "hostnames", node_list]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return shown.stdout.split()


@cache  # the launcher may be dead when it is asked again
def _deepspeed_nodes() -> tuple[dict[str, int], int]:
    """Slots of each host and this node's number; no hosts when DeepSpeed did not start this."""
    parents = ancestors() if "CROSS_SIZE" in os.environ else ()
    launch = (words for words, _ in parents if program_of(words) == "deepspeed.launcher.launch")
    return next((deepspeed_nodes(words) for words in launch), ({}, 0))


def deepspeed_nodes(words: list[str]) -> tuple[dict[str, int], int]:
    """What the command line of `python -m deepspeed.launcher.launch` says of the nodes.

    Args:
        words: its argument vector.

    Returns:
        The slots of each host, in order of rank, and the number of the node that it runs on.
    """
    named: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        named.setdefault(name, value)  # the training script's own words come after
    world = json.loads(base64.urlsafe_b64decode(named["--world_info"]))
    return {host: len(ids) for host, ids in world.items()}, int(named.get("--node_rank", "0"))


def check_world_size(expected: int | None) -> None:
    """Check that the launcher started as many ranks as `--expect-ranks` says.

    Raises:
        UserError: the launcher started another number of processes.
    """
    if expected is not None and expected != world_size():
        raise user_error(
            f"--expect-ranks {expected}",
            f"the launcher started {counted(world_size(), 'rank')}",
            "Check --hostfile and its slots, --num_gpus, or srun's --ntasks, then submit again.",
        )
