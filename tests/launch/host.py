"""A host on this machine: namespaces with an address, processes, a name and an sshd of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
OWN_NAMESPACES = ["unshare", "--pid", "--fork", "--mount", "--uts"]
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Host:
    """Its network is there at once; its processes when it boots.

    Args:
        name: of the host.
        address: on its eth0.
        folder: holds `bin/ssh` and, named as the host, what its first process does.
        work: where commands start; holds this project's files.
    """

    def __init__(self, name: str, address: str, folder: Path, work: Path) -> None:
        self.name, self.address, self._folder, self.work = name, address, folder, work
        self.environment = os.environ | {"PATH": f"{folder}/bin:{PATH}"}
        for unwanted in ("GLOO_SOCKET_IFNAME", "PDSH_SSH_ARGS_APPEND", "MASTER_ADDR", "RANK"):
            self.environment.pop(unwanted, None)
        self._network = _daemon(["unshare", "--net", "sleep", "infinity"])
        self._started: list[subprocess.Popen[bytes]] = []
        self.init = 0

    @property
    def network(self) -> str:
        """The number of the process that holds its network, for `ip` and `nsenter`."""
        return str(self._network.pid)

    def ip(self, *words: str) -> None:
        """Change its network."""
        enter = ["nsenter", "-t", self.network, "-n"]
        subprocess.run([*enter, "ip", *words], env=_environment(), check=True)

    def boot(self) -> None:
        """Start its processes: sshd is the first, and all end with it."""
        with (self._folder / f"sshd_of_{self.name}.log").open("ab") as log:
            enter = ["nsenter", "-t", self.network, "-n", *OWN_NAMESPACES, "--kill-child"]
            self._first = _daemon([*enter, "sh", f"{self._folder}/{self.name}"], log)
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        until(lambda: children.read_text().strip(), "its first process")
        self.init = int(children.read_text())

    def start(self, command: str, output: Path) -> subprocess.Popen[bytes]:
        """A shell's command here; what it prints is added to a file."""
        with output.open("ab") as file:
            started = subprocess.Popen(
                self._words(command),
                env=self.environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )
        self._started.append(started)
        return started

    def run(self, command: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A shell's command here, to its end."""
        return subprocess.run(
            self._words(command),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def _words(self, command: str) -> list[str]:
        enter = ["nsenter", "-t", str(self.init), "-n", "-p", "-m", "-u", f"--wd={self.work}"]
        return [*enter, "bash", "-c", command]

    def processes(self) -> dict[int, list[str]]:
        """The command line of all that lives here but the first process, by number outside."""
        found, here = {}, Path(f"/proc/{self.init}/ns/pid")
        if not here.exists():
            return {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                same = (folder / "ns/pid").readlink() == here.readlink()
                if same and state not in "ZX" and int(folder.name) != self.init:
                    words = (folder / "cmdline").read_bytes().decode(errors="replace")
                    found[int(folder.name)] = words.split("\0")[:-1]
        return found

    def ranks(self) -> dict[int, int]:
        """Process numbers of what trains here, by rank, outside of any restarting supervisor."""
        found = {}
        for pid, words in self.processes().items():
            with suppress(OSError):
                pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                environment = dict(pair.partition("=")[::2] for pair in pairs.split("\0"))
                rank = environment.get("RANK", environment.get("OMPI_COMM_WORLD_RANK"))
                if rank is not None and any(word.endswith("train.py") for word in words[:3]):
                    found[int(rank)] = pid
        return found

    def shared_memory(self) -> list[str]:
        """Names in its /dev/shm."""
        return sorted(path.name for path in Path(f"/proc/{self.init}/root/dev/shm").iterdir())

    def kill(self) -> None:
        """End all its processes at once, sshd too."""
        with suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self._first.wait()

    def close(self) -> None:
        """End it with its network."""
        if self.init:
            self.kill()
        for started in self._started:
            started.wait()
        self._network.kill()
        self._network.wait()


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": PATH}


def _daemon(words: list[str], output: Any = None) -> subprocess.Popen[bytes]:
    """A process that ends with this one, however this one ends."""
    return subprocess.Popen(
        words,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
