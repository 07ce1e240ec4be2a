"""Training jobs over two hosts: started as a user starts them, watched and hurt from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.jobs import newest_step
from tests.launch.host import Host, until
from tests.launch.two_hosts import TwoHosts
from tests.small_run import SETTINGS

OPENMPI = '--launcher openmpi --launcher_args="--allow-run-as-root"'
LONG = ("schedule.total_tokens=25600000", "schedule.decay_tokens=25600000")
# As launch/hostfile.md says: a link that is cut ends ssh.
SSH_ENDS = (
    'export PDSH_SSH_ARGS_APPEND="-o ConnectTimeout=10 -o ServerAliveInterval=5 '
    '-o ServerAliveCountMax=3"; '
)


def train_words(data: Path, run_dir: Path, *settings: str, template: str = "zero1") -> str:
    """`launch/train.py` and what comes after it, for a shell."""
    sets = " ".join(f"--set {each}" for each in (*SETTINGS, f"data.path={data}", *settings))
    return (
        f"launch/train.py --recipe recipes/quickstart.yaml --template ds_configs/{template}.json "
        f"--run-dir {run_dir} {sets}"
    )


class TwoHostJob:
    """A `deepspeed` command on the first host.

    Args:
        hosts: where it runs.
        run_dir: where it writes; its output goes to a file beside it.
        command: from `deepspeed` on, after the settings of ssh.
    """

    def __init__(self, hosts: TwoHosts, run_dir: Path, command: str) -> None:
        self.hosts, self.run_dir = hosts, run_dir
        self._output = run_dir.with_name(f"{run_dir.name}.log")
        self._begin = self._output.stat().st_size if self._output.exists() else 0
        self._process = hosts.first.start(f"{SSH_ENDS}exec {command}", self._output)

    def text(self) -> str:
        """What this job printed so far."""
        return self._output.read_bytes()[self._begin :].decode(errors="replace")

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float = 180.0) -> int:
        """Its exit code."""
        end = time.monotonic() + seconds
        while (code := self._process.poll()) is None:
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)
        return code

    def until(self, condition: Callable[[], Any], seconds: float = 180.0) -> None:
        """Wait for something; fails when the job ends before, or in too long a time."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.running(), self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)

    def until_step(self, step: int) -> None:
        """Wait until the metrics hold a step."""
        self.until(lambda: newest_step(self.run_dir) >= step)

    def signal(self, program: str, number: signal.Signals) -> None:
        """Send a signal to a program on the first host: `deepspeed`, or what it started."""
        (pid,) = [
            pid
            for pid, words in self.hosts.first.processes().items()
            if any(Path(word).name == program for word in words[:2])
        ]
        os.kill(pid, number)

    def until_gone(self, seconds: float = 30.0) -> None:
        """Wait until nothing of it lives on either host."""
        deadline = time.monotonic() + seconds
        while left := self.hosts.left():
            assert time.monotonic() < deadline, f"{left}\n{self.text()}"
            time.sleep(0.1)


def until_empty(host: Host, seconds: float) -> None:
    """Wait until nothing of a job lives on a host.

    A session of sshd that lost its client without a word stays until TCP gives up: that is sshd's.
    """

    def ended() -> bool:
        return all(words and words[0].startswith("sshd: ") for words in host.processes().values())

    until(ended, f"the end of all on {host.name}", seconds)
