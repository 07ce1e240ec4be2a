"""A real Slurm of two nodes on this machine: its own daemons, folder and ports; gone afterwards."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.launch.unavailable import unavailable
from tests.ranks import free_port

_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "munged")
_PACKAGES = "slurm-wlm munge"
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd%n.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:2
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


def skip_without_slurm() -> None:
    """Skip the test where no Slurm can be started, and say what is missing; in CI fail it."""
    if os.geteuid() != 0:
        unavailable("two Slurm nodes need root: run the tests as root, or in a container")
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        unavailable(f"{missing[0]} is not here: apt-get install -y {_PACKAGES}")


class SlurmNodes:
    """Two nodes, n1 and n2, of two GPUs each in name.

    Args:
        folder: of its configuration, daemons' logs and state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        (folder / "state").mkdir()
        ports: set[int] = set()
        while len(ports) < 3:
            ports.add(free_port())
        text = _CONFIGURATION.format(host=platform.node(), folder=folder, ports=[*ports])
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)

    def start(self) -> None:
        """Start the daemons; returns when both nodes are idle."""
        where = {name: f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file")}
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "seed", "log")]
        self._daemon("munged", "--foreground", "--force", *where.values(), *files)
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-N", "n1")
        self._daemon("slurmd", "-D", "-N", "n2")
        self._until(self.idle, "both nodes")

    def idle(self) -> bool:
        """Whether no part of any job is left on either node."""
        return self.run("sinfo", "-h", "-o", "%T %D") == "idle 2"

    def _daemon(self, *command: str) -> None:
        name = "_".join(word for word in command if word.isalnum())
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command],  # also when the tests are killed
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def run(self, *command: str) -> str:
        """What a command of Slurm prints; empty when it fails."""
        shown = subprocess.run(
            command,
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        return shown.stdout.strip() if shown.returncode == 0 else ""

    def submit(self, *words: str, **environment: str) -> str:
        """The number of a job of `sbatch` in the repository."""
        shown = subprocess.run(
            ["sbatch", "--parsable", *words],
            cwd=REPOSITORY,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        return shown.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        shown = self.run("scontrol", "show", "job", "-o", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def state(self, number: str) -> str:
        """RUNNING, COMPLETED, ... of a job."""
        return self.job(number).get("JobState", "")

    def _until(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}: not ready in {seconds:.0f} s: {self.logs()}"
            assert all(one.poll() is None for one in self._daemons), self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """The daemons' last words."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)

    def stop(self) -> None:
        """End every job, daemon and process of this Slurm."""
        self.run("scancel", "--full", "--signal=KILL", "-u", "root")
        for daemon in self._daemons[::-1]:
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Processes that were started with this Slurm's configuration."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


@contextmanager
def two_slurm_nodes() -> Iterator[SlurmNodes]:
    """Two idle nodes; nothing of them is left, whatever happens."""
    skip_without_slurm()
    with tempfile.TemporaryDirectory(prefix="slurm_", dir="/run") as folder:
        nodes = SlurmNodes(Path(folder))
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.stop()
