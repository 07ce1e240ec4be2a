"""What a rank says of itself, so that all can be compared."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.host_memory import free_memory, total_memory
from gpt2_ds.hosts.launcher import local_ranks, rank
from gpt2_ds.parallel.process_group import device_title, local_device
from gpt2_ds.record.run_directory import git_commit, package_versions

_REPOSITORY = Path(__file__).resolve().parents[2]
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each, whatever a process is shown
_MUST_BE_EQUAL = ("torch", "deepspeed", "numpy")


@dataclass(frozen=True)
class RankFacts:
    """One rank's machine and software.

    Args:
        rank: its number.
        host: its machine's name.
        node: the first rank of that machine: two machines may have one name.
        node_ranks: ranks on that machine.
        versions: of Python and the packages that must be the same everywhere; on GPUs, of NCCL.
        commit: of this project, and whether files differ from it; of a machine's first rank only.
        sources: sha256 over this project's code.
        recipe: sha256 over recipe, template and what follows from them.
        data: fingerprint of the dataset; empty: none was opened.
        local_rank: which device of its machine it takes.
        devices: devices that it sees; 0 on a CPU.
        machine_devices: that its machine has, as far as it shows; 0 on a CPU.
        cores: CPU cores that it may use.
        memory_bytes: of its machine, or what its container may use.
        free_memory_bytes: of that, not in use.
        device_model: as its vendor calls its device; "cpu" for a CPU.
        driver: version of NVIDIA's kernel module; empty on a CPU, and where the kernel has none.
        device_memory_bytes: of its device; 0 on a CPU.
        free_device_memory_bytes: of that, not in use.
        shm_bytes: size of /dev/shm; 0 where there is none.
    """

    rank: int
    host: str
    node: int
    node_ranks: int
    versions: dict[str, str]
    commit: str
    sources: str
    recipe: str
    data: str
    local_rank: int
    devices: int
    machine_devices: int
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    device_model: str
    driver: str
    device_memory_bytes: int
    free_device_memory_bytes: int
    shm_bytes: int

    @classmethod
    def here(cls, plan: RunPlan, data: str) -> RankFacts:
        """This rank's.

        Args:
            plan: of the run.
            data: the dataset's fingerprint.
        """
        on_gpu = local_device().type == "cuda"
        free_device, device = torch.cuda.mem_get_info() if on_gpu else (0, 0)
        ranks = local_ranks()
        devices = torch.cuda.device_count() if on_gpu else 0
        return cls(
            rank=rank(),
            host=platform.node(),
            node=ranks.start,
            node_ranks=len(ranks),
            versions=versions(on_gpu),
            commit=git_commit() if rank() == ranks.start else "",
            sources=_sources(),
            recipe=_of_plan(plan),
            data=data,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            devices=devices,
            machine_devices=_machine_devices(devices),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=total_memory(),
            free_memory_bytes=free_memory(),
            device_model=device_title(),
            driver=_driver() if on_gpu else "",
            device_memory_bytes=device,
            free_device_memory_bytes=free_device,
            shm_bytes=_shm_bytes(),
        )


def versions(on_gpu: bool) -> dict[str, str]:
    """Of what must be the same on all machines.

    Args:
        on_gpu: ranks talk through NCCL, whose releases do not understand each other.
    """
    packages = package_versions()
    found = {"Python": platform.python_version()}
    found |= {name: packages[name] for name in _MUST_BE_EQUAL}
    if on_gpu:
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        found["NCCL"] = ".".join(map(str, nccl))
    return found


def _driver() -> str:
    """As in "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 ..."."""
    try:
        found = re.search(r"\d+\.\d[\d.]*", _NVIDIA_DRIVER.read_text())
    except OSError:
        return ""
    return found[0] if found else ""


@cache
def _sources() -> str:
    """sha256 over the code: a commit does not tell which changes are on top of it."""
    digest = hashlib.sha256()
    for folder in ("gpt2_ds", "launch"):
        for path in sorted((_REPOSITORY / folder).rglob("*.py")):
            digest.update(str(path.relative_to(_REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _of_plan(plan: RunPlan) -> str:
    values = [plan.recipe.model_dump(), plan.template.model_dump(), plan.last_step]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _machine_devices(seen: int) -> int:
    """Devices of this machine. DeepSpeed's launcher shows a rank only as many as it has slots.

    Others show what this job was given, or all.

    Args:
        seen: by this rank.
    """
    if seen and "CROSS_SIZE" in os.environ and _NVIDIA_GPUS.is_dir():
        return max(seen, len(list(_NVIDIA_GPUS.iterdir())))
    return seen


def _shm_bytes() -> int:
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return 0
