"""Two hosts on one machine, each with its own address, processes, name, /dev/shm and sshd.

They are namespaces of the kernel, held by processes alone: when those end nothing is left, even
when the test run itself is killed. The disk is shared, as between nodes of a cluster.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from tests.launch.unavailable import unavailable

PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
    "mpirun": "openmpi-bin",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "hostname": "hostname",
}
NODE_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "eth0",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
}
_PATH = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"]
)
_OWN_NAMESPACES = ["unshare", "--pid", "--fork", "--mount", "--uts"]
_NOBODYS_ADDRESS = "02:00:00:00:00:99"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
# HOME: no start-up file of the user's shell: pyenv's, killed in a login, leaves a lock behind.
_SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
SetEnv HOME={folder}
"""
_SSH = """
Host *
    IdentityFile {folder}/key
    IdentitiesOnly yes
    BatchMode yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""
# A host's own name is 127.0.1.1, as Debian's installer writes it.
_NODE = """set -e
hostname {name}
mount -t proc proc /proc
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind {folder}/hosts_of_{name} /etc/hosts
exec {sshd} -D -e -f {folder}/sshd.conf
"""


class Host:
    """One of the two.

    Args:
        name: of the host.
        address: on its eth0.
        folder: holds keys and configuration.
        work: where commands start; holds this project's files.
    """

    def __init__(self, name: str, address: str, folder: Path, work: Path) -> None:
        self.name, self.address, self._folder, self.work = name, address, folder, work
        self.environment = os.environ | {"PATH": f"{folder}/bin:{_PATH}"}
        for unwanted in ("GLOO_SOCKET_IFNAME", "PDSH_SSH_ARGS_APPEND", "MASTER_ADDR", "RANK"):
            self.environment.pop(unwanted, None)
        self._network = _daemon(["unshare", "--net", "sleep", "infinity"])
        self._started: list[subprocess.Popen[bytes]] = []
        self.init = 0

    @property
    def network(self) -> str:
        """The process that holds its network, for `ip` and `nsenter`."""
        return str(self._network.pid)

    def boot(self) -> None:
        """Start its processes: sshd is the first, and all end with it."""
        with (self._folder / f"sshd_of_{self.name}.log").open("ab") as log:
            enter = ["nsenter", "-t", self.network, "-n", *_OWN_NAMESPACES, "--kill-child"]
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


class TwoHosts:
    """Both, and the link between them.

    Args:
        first: where commands are typed.
        second: the other.
    """

    def __init__(self, first: Host, second: Host) -> None:
        self.first, self.second = first, second
        self.both = (first, second)
        self.work = first.work

    def cut(self) -> None:
        """Let every packet between the two go astray, without a word, as a dead switch does."""
        for host, other in (self.both, self.both[::-1]):
            address = [other.address, "lladdr", _NOBODYS_ADDRESS, "dev", "eth0", "nud", "permanent"]
            _ip(host, "neigh", "replace", *address)

    def mend(self) -> None:
        """Undo `cut`."""
        for host, other in (self.both, self.both[::-1]):
            _ip(host, "neigh", "del", other.address, "dev", "eth0")

    def left(self) -> dict[str, list[str]]:
        """Processes on either host, by its name."""
        found = {
            host.name: [" ".join(words) for words in host.processes().values()]
            for host in self.both
        }
        return {name: processes for name, processes in found.items() if processes}

    def write_environment(self, **more: str) -> None:
        """The file `.gpt2_ds_env` of the working directory."""
        lines = [f"{name}={value}\n" for name, value in (NODE_ENVIRONMENT | more).items()]
        path = self.work / ".gpt2_ds_env"
        path.write_text("".join(lines))
        path.chmod(0o600)

    def write_hostfile(self, *slots: int, name: str = "hostfile") -> None:
        """So many ranks on the first host, on the second."""
        lines = [f"{host.name} slots={n}\n" for host, n in zip(self.both, slots, strict=False)]
        (self.work / name).write_text("".join(lines))


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Two hosts, node1 (10.77.0.1) and node2 (10.77.0.2), with 2 slots each in `hostfile`.

    Skips the test, with the reason, where they cannot be had; in CI it fails.

    Args:
        folder: for their files; `work` in it is where commands start.
    """
    if reason := why_not():
        unavailable(reason)
    work = folder / "work"
    (folder / "bin").mkdir(parents=True)
    work.mkdir()
    for name in ("launch", "gpt2_ds", "recipes", "ds_configs"):
        (work / name).symlink_to(REPOSITORY / name)
    for name in ("host_key", "key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    (folder / "ssh.conf").write_text(_SSH.format(folder=folder))
    (folder / "sshd.conf").write_text(_SSHD.format(folder=folder))
    (folder / "bin/ssh").write_text(
        f'#!/bin/sh\nexec {_program("ssh")} -F {folder}/ssh.conf "$@"\n'
    )
    (folder / "bin/ssh").chmod(0o755)
    addresses = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
    with ExitStack() as stack:
        hosts = []
        for name, address in addresses.items():
            others = (f"{where} {other}\n" for other, where in addresses.items() if other != name)
            known = f"127.0.0.1 localhost\n127.0.1.1 {name}\n{''.join(others)}"
            (folder / f"hosts_of_{name}").write_text(known)
            script = _NODE.format(name=name, folder=folder, sshd=_program("sshd"))
            (folder / name).write_text(script)
            hosts.append(Host(name, address, folder, work))
            stack.callback(hosts[-1].close)
        _connect(*hosts)
        for host in hosts:
            host.boot()
        pair = TwoHosts(*hosts)
        for host in hosts:
            for name in addresses:
                reaches = partial(_reaches, host, name)
                until(reaches, f"ssh from {host.name} to {name}")
        pair.write_environment()
        pair.write_hostfile(2, 2)
        yield pair


def why_not() -> str | None:
    """Why two hosts cannot be had here, and what to type; None: they can."""
    if not sys.platform.startswith("linux"):
        return "two hosts on one machine need Linux"
    if os.geteuid() != 0:
        return "two hosts on one machine need root: run the tests as root, in a container"
    if missing := sorted({PACKAGES[name] for name in PACKAGES if not _program(name)}):
        return f"not installed: apt-get install -y {' '.join(missing)}"
    tried = subprocess.run(
        [*_OWN_NAMESPACES, "--net", "mount", "-t", "proc", "proc", "/proc"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"no namespaces here ({tried.stderr.strip()}): docker run --privileged gives them"
    return None


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)


def _program(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


def _reaches(host: Host, name: str) -> bool:
    return host.run(f"ssh -o ConnectTimeout=5 {name} true").returncode == 0


def _connect(first: Host, second: Host) -> None:
    """A cable between the two, eth0 on both ends."""
    words = ["ip", "link", "add", "eth0", "netns", first.network, "type", "veth", "peer"]
    until(lambda: _own_network(first) and _own_network(second), "their networks")
    subprocess.run(
        [*words, "name", "eth0", "netns", second.network], env=_environment(), check=True
    )
    for host in (first, second):
        _ip(host, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip(host, "link", "set", device, "up")


def _own_network(host: Host) -> bool:
    mine = Path("/proc/self/ns/net").readlink()
    return Path(f"/proc/{host.network}/ns/net").readlink() != mine


def _ip(host: Host, *words: str) -> None:
    enter = ["nsenter", "-t", host.network, "-n"]
    subprocess.run([*enter, "ip", *words], env=_environment(), check=True)


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": _PATH}


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
