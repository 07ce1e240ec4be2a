"""Run a function on several real ranks (gloo), as a launcher would, and get what each returned."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import socket
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def free_port() -> int:
    """A port that is still free when it is used, seconds later.

    Not one that the system hands out by itself (32768 and above): every connection of another test
    takes one of those; nor from 20000 on, where launch/slurm.sbatch takes its own. Two workers of
    pytest never choose the same.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 10_000 + 2 * secrets.randbelow(5_000) + worker % 2
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _main(task: bytes, environment: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ |= environment
    warnings.simplefilter("ignore")  # DeepSpeed's and torch.distributed's own
    from gpt2_ds.parallel.process_group import join, leave

    try:
        work, args = pickle.loads(task)
        join(timeout_minutes=3)
        result = work(*args)
        torch.save(result, folder / f"result_{environment['RANK']}.pt")
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


def run_ranks(
    work: Callable[..., Any],
    world_size: int,
    folder: Path,
    *args: Any,
    accelerator: str = "cpu",
) -> list[Any]:
    """Each rank's result of `work(*args)`; `work` must be importable (a module's function)."""
    port = free_port()
    task = pickle.dumps((work, args))  # by value: a fork is given few open files
    # Forked from a server that has imported all already: seconds less for each call. A process that
    # is to use a GPU chooses its accelerator as it imports.
    context = multiprocessing.get_context("forkserver" if accelerator == "cpu" else "spawn")
    if accelerator == "cpu":
        context.set_forkserver_preload(["gpt2_ds.train.run"])
    processes = []
    for rank in range(world_size):
        environment = {
            **os.environ,  # as it is now: a fork would have what it was when the server began
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "DS_ACCELERATOR": accelerator,
            "OMP_NUM_THREADS": "1",
        }
        processes.append(context.Process(target=_main, args=(task, environment, folder)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * world_size, f"exit codes of the ranks: {codes}"
    return [
        torch.load(folder / f"result_{rank}.pt", weights_only=False) for rank in range(world_size)
    ]
