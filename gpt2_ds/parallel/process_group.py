"""Join and leave the job: the process group, this rank's device, and a clean exit."""

from __future__ import annotations

import atexit
import logging
import os
import resource
import sys
import warnings
from datetime import timedelta
from typing import NoReturn

import deepspeed
import deepspeed.ops
import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger

from gpt2_ds.config.launcher import local_world_size
from gpt2_ds.config.recipe import Dtype

_ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


def join(timeout_minutes: float = 30.0) -> torch.device:
    """Become a rank of the job that the launcher describes; alone when there is no launcher.

    Args:
        timeout_minutes: a collective that waits longer fails.

    Returns:
        This rank's device.
    """
    deepspeed_logger.setLevel(logging.WARNING)
    # ZeRO calls these under their old names (DeepSpeed 0.19.8 on torch 2.13).
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", rf"`torch.distributed.{name}` is deprecated")
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    spare_shm_op()
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size()))
    deepspeed.init_distributed(timeout=timedelta(minutes=timeout_minutes), verbose=False)
    return device


def spare_shm_op() -> None:
    """Keep DeepSpeed from compiling and loading `deepspeed_shm_comm`.

    On CPU, DeepSpeed 0.19.8 builds this op inside init_distributed (no compiler: a failure) and
    leaves 66 MiB a rank in /dev/shm. Only its inference all-reduce uses it.
    """
    known = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(known, dict) and "deepspeed_shm_comm" in known:
        known["deepspeed_shm_comm"] = False


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


def leave(code: int) -> NoReturn:
    """End this process with `code`; after a success, once every rank has come here.

    torch aborts now and then at the interpreter's exit after gloo was used (pytorch #190489, seen
    in 2.13): so the process ends without one.
    """
    if code == 0:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        atexit._run_exitfuncs()  # what os._exit leaves out: W&B and Comet finish their runs there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
