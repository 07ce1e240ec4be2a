"""Two hosts on one machine, each with its own address, processes, name, /dev/shm and sshd.

They are namespaces of the kernel, held by processes alone: when those end nothing is left, even
when the test run itself is killed. The disk is shared, as between nodes of a cluster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.launch.host import OWN_NAMESPACES, PATH, Host, until
from tests.launch.sshd import write_keys, write_ssh, write_sshd_configuration
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
_NOBODYS_ADDRESS = "02:00:00:00:00:99"
_SSHD = """\
Port 22
PermitRootLogin yes
"""
_SSH = """
Host *
    IdentityFile {folder}/user_key
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
            host.ip("neigh", "replace", *address)

    def mend(self) -> None:
        """Undo `cut`."""
        for host, other in (self.both, self.both[::-1]):
            host.ip("neigh", "del", other.address, "dev", "eth0")

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
    work.mkdir(parents=True)
    for name in ("launch", "gpt2_ds", "recipes", "ds_configs"):
        (work / name).symlink_to(REPOSITORY / name)
    write_keys(folder)
    write_sshd_configuration(folder, _SSHD)
    (folder / "ssh.conf").write_text(_SSH.format(folder=folder))
    write_ssh(folder, str(_program("ssh")), folder / "bin")
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
        [*OWN_NAMESPACES, "--net", "mount", "-t", "proc", "proc", "/proc"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"no namespaces here ({tried.stderr.strip()}): docker run --privileged gives them"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=PATH)


def _reaches(host: Host, name: str) -> bool:
    return host.run(f"ssh -o ConnectTimeout=5 {name} true").returncode == 0


def _connect(first: Host, second: Host) -> None:
    """A cable between the two, eth0 on both ends."""
    until(lambda: _own_network(first) and _own_network(second), "their networks")
    peer = ["peer", "name", "eth0", "netns", second.network]
    first.ip("link", "add", "eth0", "type", "veth", *peer)
    for host in (first, second):
        host.ip("addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            host.ip("link", "set", device, "up")


def _own_network(host: Host) -> bool:
    mine = Path("/proc/self/ns/net").readlink()
    return Path(f"/proc/{host.network}/ns/net").readlink() != mine
