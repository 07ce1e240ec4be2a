"""Whether each host of a hostfile lets this machine in, as DeepSpeed's launcher will ask it to."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpt2_ds.preflight.verdicts import Check, failed, ok, warning

_CONNECT_SECONDS = 5
_LOGIN_SECONDS = 20.0
_AT_ONCE = 64
_OF_SSH_ITSELF = 255  # its exit code where it could not log in; any other is that of the command


@dataclass(frozen=True)
class Ssh:
    """How this machine's ssh is asked to reach a host.

    Args:
        port: --ssh-port; None: as ssh's own configuration says.
    """

    port: int | None = None

    def resolve_command(self, host: str) -> list[str]:
        """What shows where ssh would go, with ~/.ssh/config; connects to nothing."""
        return ["ssh", "-G", *self._port_words(), host]

    def login_command(self, host: str) -> list[str]:
        """What logs in as the launcher will, without a question to anybody, and does as it does.

        The launcher goes to this folder, and starts this Python.
        """
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
        there = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.quote(sys.executable)} -V"
        return ["ssh", *options, *self._port_words(), host, there]

    def _port_words(self) -> list[str]:
        return [] if self.port is None else ["-p", str(self.port)]


def commands(hosts: dict[str, int], ssh: Ssh) -> str:
    """The commands that `reach` runs, a line each, quoted for a shell."""
    makers = (ssh.resolve_command, ssh.login_command)
    return "\n".join(shlex.join(make(host)) for host in hosts for make in makers)


def reach(hosts: dict[str, int], ssh: Ssh) -> list[Check]:
    """A check for each host, and one for the launcher that starts the ranks there.

    Args:
        hosts: as `read_hostfile` gives them: plain names and addresses, with their slots.
        ssh: how to reach them.
    """
    if shutil.which("ssh") is None:
        fix = "Install it: apt-get install openssh-client."
        return [failed("ssh", "is not installed on this machine", fix)]
    with ThreadPoolExecutor(min(_AT_ONCE, len(hosts))) as pool:
        found = list(pool.map(lambda host: _reach_one(host, ssh), hosts))
    return [_launcher(), *found]


def is_another(host: str, ssh: Ssh) -> bool:
    """Whether a host is another machine than this one; no connection is made."""
    address = _settings(host, ssh).get("hostname", host) if shutil.which("ssh") else host
    with suppress(OSError):  # of a name that nobody knows, too
        for family, *_, where in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
            with socket.socket(family) as own, suppress(OSError):
                own.bind(where)  # only an address of this machine can be taken
                return False
    return True


def _launcher() -> Check:
    if shutil.which("pdsh") is not None:
        return ok("launcher", "pdsh is installed")
    fix = "Install it: apt-get install pdsh. Or give deepspeed --launcher openmpi."
    return warning("launcher", "pdsh, which deepspeed uses unless told otherwise, is missing", fix)


def _reach_one(host: str, ssh: Ssh) -> Check:
    name = f"host {host}"
    settings = _settings(host, ssh)
    address = settings.get("hostname", host)
    port = ssh.port or int(settings.get("port", "22"))
    where = f"{address} port {port}"
    through = {settings.get(key, "none") for key in ("proxycommand", "proxyjump")} != {"none"}
    try:
        if not through:  # otherwise only ssh itself knows the way
            socket.create_connection((address, port), timeout=_CONNECT_SECONDS).close()
    except socket.gaierror:
        fix = "Correct the name in the hostfile, or add it to DNS, /etc/hosts or ~/.ssh/config."
        return failed(name, f"the name {address} cannot be resolved", fix)
    except ConnectionRefusedError:
        fix = f"Start sshd on {host}, or name its port with --ssh-port."
        return failed(name, f"{where} refuses connections", fix)
    except TimeoutError:
        fix = f"See whether {host} is up, and whether a firewall is between the machines."
        return failed(name, f"{where} does not answer within {_CONNECT_SECONDS} s", fix)
    except OSError as error:
        fix = f"See whether {host} is up, and whether this machine has a route to it."
        return failed(name, f"{where}: {error.strerror or error}", fix)
    return _log_in(host, ssh, where)


def _settings(host: str, ssh: Ssh) -> dict[str, str]:
    """What ssh's configuration says of a host, by key; empty when it cannot be read."""
    done = _run(ssh.resolve_command(host))
    if done is None:  # a `Match exec` of the user's
        return {}
    pairs = [line.partition(" ") for line in done.stdout.splitlines()]
    return {key: value for key, _, value in pairs}


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """What it printed, without a keyboard; None when it did not end in time."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_LOGIN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None


def _log_in(host: str, ssh: Ssh, where: str) -> Check:
    name = f"host {host}"
    by_hand = shlex.join(["ssh", *ssh._port_words(), host])
    done = _run(ssh.login_command(host))
    if done is None:
        fix = (
            f"Type {by_hand}, and see where it stops: before the login, or after it, in a start-up "
            "file of the shell there (~/.bashrc)."
        )
        return failed(name, f"{where}: ssh did not end within {_LOGIN_SECONDS:.0f} s", fix)
    if done.returncode == 0:
        return ok(name, f"{where} lets this user in")
    said = done.stderr.strip().splitlines() or [f"ssh ended with exit code {done.returncode}"]
    if done.returncode != _OF_SSH_ITSELF:
        fix = f"Put the project into {Path.cwd()} there, too, and its Python to {sys.executable}."
        return failed(name, f"{where} lets this user in: {said[-1].strip()}", fix)
    if "Host key verification failed" in done.stderr:
        fix = f"Type {by_hand} once, and accept the host's key after checking it."
        return failed(name, f"{where}: the host's key is unknown or has changed", fix)
    if "Permission denied" in done.stderr:
        port = "" if ssh.port is None else f"-p {ssh.port} "
        fix = f"Let this user in there: ssh-copy-id {port}{host}."
        return failed(name, f"{where}: no key of this user is accepted", fix)
    return failed(name, f"{where}: {said[-1].strip()}", f"Type {by_hand}, and see what it says.")
