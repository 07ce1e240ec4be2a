"""Real gloo ranks under a watchdog, each a process of its own, to be killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.ranks import free_port

# argv: run directory, timeout in seconds, then what each rank does in step 3.
_RANK = """
import os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from gpt2_ds.config.errors import RunError, exit_code_of
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.process_group import join, leave
from gpt2_ds.health.watchdog import Watchdog

if os.environ.get("BACKEND"):  # the watchdog's idea of it alone; the ranks talk by gloo
    import gpt2_ds.health.watchdog
    class Distributed:
        def __getattr__(self, name):
            return (lambda: os.environ["BACKEND"]) if name == "get_backend" else getattr(dist, name)
    gpt2_ds.health.watchdog.dist = Distributed()
    gpt2_ds.health.watchdog._DEAD_GRACE_SECONDS = 60.0  # for the main thread, under gloo alone
if os.environ.get("HOSTS"):  # each rank is alone on its own
    from gpt2_ds.health.rank_status import RankProcess
    of_this_process = RankProcess.of_this_process
    def alone(rank):
        from dataclasses import replace
        return replace(of_this_process(rank), host=f"host{rank}", place=f"place{rank}")
    RankProcess.of_this_process = alone

run_dir, timeout_seconds, deed = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3 + rank()]

def steps(watchdog):
    for step in range(1, 200):
        watchdog.mark(step, "waiting for data")
        if step == 3:
            (run_dir / f"rank{rank()}").write_text(str(os.getpid()))
            if deed == "hang":
                time.sleep(600)
            if deed == "pause":
                time.sleep(4 * timeout_seconds)
            if deed == "hold":  # the GIL, and no signal ends it: no thread of this process can run
                import ctypes
                libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
                libc.pthread_mutex_lock(mutex)
                libc.pthread_mutex_lock(mutex)
            if deed == "fail":
                raise RunError("the disk is full")
            if deed == "leave":
                return
            if deed == "apart":  # waits for nobody: as NCCL, it does not notice a dead peer
                while not (run_dir / "go").exists():
                    time.sleep(0.05)
                return
        watchdog.mark(step, "averaging")
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:
            sentence = watchdog.what_happened(error)
            raise RunError(sentence or "nobody died") from None
        time.sleep(0.05)

def main():
    join(timeout_minutes=2)
    with Watchdog(run_dir, timeout_seconds) as watchdog:
        steps(watchdog)
    return 0

code = exit_code_of(main)
if deed == "leave":
    time.sleep(float(os.environ.get("STAY", "0")))
    os._exit(code)  # long before the others
leave(code)
"""


class Ranks:
    """One started process a rank; ended with the block, whatever happened."""

    def __init__(
        self, run_dir: Path, *deeds: str, timeout_seconds: float = 60, code: str = _RANK
    ) -> None:
        self.run_dir, self.deeds = run_dir, deeds
        port = str(free_port())
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code, run_dir, str(timeout_seconds), *deeds],
                cwd=REPOSITORY,
                env=os.environ
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(deeds))}
                | {"LOCAL_SIZE": str(len(deeds)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                | {"OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(len(deeds))
        ]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stderr:
                process.stderr.close()

    def wait_for_step_3(self) -> None:
        end = time.monotonic() + 120
        for rank in range(len(self.deeds)):
            while not (self.run_dir / f"rank{rank}").exists():
                for process in self.processes:
                    ended = process.poll() not in (None, 0)  # one may leave early
                    assert not ended or process.stderr is None, process.stderr.read()
                assert time.monotonic() < end, f"rank {rank} never came to step 3"
                time.sleep(0.05)

    def send(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def ends(self, seconds: float) -> list[tuple[int, str]]:
        """Exit code and stderr of each rank; all have ended within `seconds`."""
        end = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"rank {rank} lives after {seconds} s") from None
        return [
            (process.returncode, process.stderr.read() if process.stderr else "")
            for process in self.processes
        ]
