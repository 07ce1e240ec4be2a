"""Join and leave the job: the process group, this rank's device, and a clean exit."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import platform
import resource
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger

from gpt2_ds.config.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_RUN_FAILED, RunError, exit_code_of
from gpt2_ds.config.recipe import Dtype
from gpt2_ds.hosts.launcher import hosts_of_ranks, local_world_size, world_size
from gpt2_ds.parallel.rendezvous import rendezvous

_ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
_LAST_BARRIER_SECONDS = 5.0
_OPEN_FILES = 65536

_joined = {"timeout_minutes": 30.0}  # of the groups of this process


def join(timeout_minutes: float = 30.0, rendezvous_seconds: float = 600.0) -> torch.device:
    """Become a rank of the job that the launcher describes; alone when there is no launcher.

    Args:
        timeout_minutes: a collective that waits longer fails.
        rendezvous_seconds: how long the ranks wait for each other here, if that is less.

    Returns:
        This rank's device.

    Raises:
        RunError: the rendezvous failed: rank 0's port is taken, rank 0 cannot be reached, or ranks
            are missing.
        UserError: a host has other devices than the others, or too few.
    """
    deepspeed_logger.setLevel(logging.WARNING)
    # ZeRO calls these under their old names (DeepSpeed 0.19.8 on torch 2.13).
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", rf"`torch.distributed.{name}` is deprecated")
    if "RANK" not in os.environ:  # MASTER_ADDR may still be there, from a file for many machines
        os.environ |= _ALONE
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    _raise_file_limit()
    spare_shm_op()
    spare_compiler()
    # The engine imports it: some seconds on a busy machine, which a watchdog with a short timeout
    # would take for a hang.
    importlib.import_module("torch._dynamo")
    device = local_device()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size()))
    _joined["timeout_minutes"] = timeout_minutes
    rendezvous_seconds = min(60 * timeout_minutes, rendezvous_seconds)
    try:
        devices = 0 if device.type == "cpu" else get_accelerator().device_count()
        store = rendezvous(rendezvous_seconds, device.type, devices) if world_size() > 1 else None
        if device.type == "cuda":
            torch.cuda.set_device(device)  # not before: a host that has none of it is named there
        deepspeed.init_distributed(timeout=timedelta(minutes=timeout_minutes), verbose=False)
        del store
        host_group()  # here, where the message names the network: NCCL has connected nothing yet
    except (RuntimeError, OSError) as error:  # OSError: the master's name is not known
        raise RunError(_why_not_joined(str(error), rendezvous_seconds)) from error
    return device


def _raise_file_limit() -> None:
    """Rank 0 holds three connections a rank, and 1,024 is a usual limit."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    if resource.RLIM_INFINITY != now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _why_not_joined(error: str, seconds: float) -> str:
    """What torch's error means, in the words of the command that was typed."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    this = f"rank {os.environ['RANK']} on {platform.node()}"
    if "EADDRINUSE" in error:
        another = int(port) + 1 if int(port) < 65535 else 29500
        return (
            f"--master_port {port}: is in use by another process on {platform.node()}. Give "
            f"another: deepspeed --master_port {another} ...; or, where srun or mpirun starts the "
            f"ranks, MASTER_PORT={another} in the environment of all."
        )
    if "trying to connect to" in error:
        hosts = hosts_of_ranks()
        there = f" on host {hosts[0]}" if hosts else " there"
        return (
            f"--master_addr {address} --master_port {port}: {this} could not reach rank 0{there} "
            f"for {seconds:g} s. See whether rank 0 lives, whether a firewall is between the "
            f"machines, and whether {address} is of the network that joins them: if not, give "
            "deepspeed another by --master_addr."
        )
    return (
        f"--master_addr {address} --master_port {port}: {this} could not join the others: "
        f"{error.splitlines()[0] if error else 'no reason was given'}. Between machines, "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network device to use."
    )


def spare_shm_op() -> None:
    """Keep DeepSpeed from compiling and loading `deepspeed_shm_comm`.

    On CPU, DeepSpeed 0.19.8 builds this op inside init_distributed (no compiler: a failure) and
    leaves 66 MiB a rank in /dev/shm. Only its inference all-reduce uses it.
    """
    known = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(known, dict) and "deepspeed_shm_comm" in known:
        known["deepspeed_shm_comm"] = False


def spare_compiler() -> None:
    """Keep DeepSpeed from importing torch's compiler where nothing is compiled.

    deepspeed.initialize (0.19.8) imports its Muon optimizer, which marks functions for
    torch.compile where it defines them: two seconds of every rank's start, and many on a busy
    machine. They stay plain functions here; Muon's update runs uncompiled.
    """
    compiler = importlib.import_module("deepspeed.runtime.compiler")
    marked = getattr(compiler, "compile", None)

    def unmarked() -> Any:
        return lambda function: function

    compiler.compile = unmarked  # type: ignore[attr-defined]
    try:
        with suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = marked  # type: ignore[attr-defined]


def local_device() -> torch.device:
    """The device of this rank."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    return torch.device(accelerator.device_name(int(os.environ.get("LOCAL_RANK", "0"))))


def supports(dtype: Dtype) -> bool:
    """Whether DeepSpeed can train in a number format on this device."""
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return formats[dtype] in get_accelerator().supported_dtypes()


def device_title() -> str:
    """The name of this rank's device, as its vendor writes it; "cpu" for a CPU."""
    device = local_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_bytes() -> int:
    """Largest memory held so far: the device allocator's, or on CPU the process's resident set."""
    device = local_device()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def host_group() -> dist.ProcessGroup:
    """All ranks, for small tensors on the CPU. Collective when it is called for the first time."""
    world = dist.group.WORLD
    assert world is not None, "join comes first"
    return world if dist.get_backend() == "gloo" else _gloo_group(world)


@cache
def _gloo_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A gloo group of all ranks of `world`, the default group."""
    timeout = timedelta(minutes=_joined["timeout_minutes"])
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout)
    return group


def leave_after(work: Callable[[], int]) -> NoReturn:
    """Do the work of this process, and leave with the exit code that it gives."""
    try:
        leave(exit_code_of(work))
    except Exception:  # a fault of this project: the other ranks must not wait for this one
        traceback.print_exc()
        leave(EXIT_RUN_FAILED)


def leave(code: int) -> NoReturn:
    """End this process with `code`; after a success, or a stop that was asked for, together.

    A launcher that sees one rank end with another code than 0 kills the others: so the ranks wait
    for each other before, but only a few seconds, because a rank that is gone never comes.

    torch aborts now and then at the interpreter's exit after gloo was used (pytorch #190489, seen
    in 2.13): so the process ends without one.
    """
    if code in (EXIT_DONE, EXIT_PREEMPTED):
        if dist.is_initialized():
            barrier = threading.Thread(target=_barrier, daemon=True)
            barrier.start()
            barrier.join(_LAST_BARRIER_SECONDS)
        atexit._run_exitfuncs()  # what os._exit skips: W&B and Comet finish their runs there
    with suppress(OSError, ValueError):  # the terminal may be a broken pipe
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def _barrier() -> None:
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # each thread has its own
    with suppress(RuntimeError):  # a rank is gone
        dist.barrier()
        dist.destroy_process_group()
