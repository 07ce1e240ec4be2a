"""A real sshd of this user's on a port of the loopback, and an ssh that knows it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.launch.sshd import write_keys, write_ssh, write_sshd_configuration
from tests.launch.unavailable import unavailable
from tests.ranks import free_port

_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
KbdInteractiveAuthentication no
"""
_CLIENT = """\
Host good
  HostName 127.0.0.1
  Port {port}
Host noport
  HostName 127.0.0.1
Host stranger
  HostName 127.0.0.1
  Port {port}
  UserKnownHostsFile {folder}/no_hosts
Host keyless
  HostName 127.0.0.1
  Port {port}
  HostKeyAlias good
  PubkeyAuthentication no
Host closed
  HostName 127.0.0.1
  Port 1
Host through
  HostName nowhere.invalid
  HostKeyAlias good
  ProxyCommand {netcat}
Host *
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
"""
_NETCAT = """\
#!/usr/bin/env python3
import os, socket, sys, threading
link = socket.create_connection(("127.0.0.1", {port}))
def send():
    while data := os.read(0, 65536):
        link.sendall(data)
threading.Thread(target=send, daemon=True).start()
while data := link.recv(65536):
    os.write(1, data)
"""


@contextmanager
def ssh_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of an sshd in which the hosts of `_CLIENT` end; `ssh` on the PATH knows them."""
    sshd, ssh = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"), shutil.which("ssh")
    if sshd is None or ssh is None:
        unavailable("no sshd here: apt-get install openssh-server")
    privileged = Path("/run/sshd")
    if not privileged.is_dir():
        try:
            privileged.mkdir(exist_ok=True)
        except OSError:
            unavailable("sshd needs the folder /run/sshd: sudo mkdir /run/sshd")
    port = free_port()
    write_keys(folder)
    key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}good {key}[good]:{port} {key}")
    netcat, tools = folder / "netcat", folder / "tools"
    netcat.write_text(_NETCAT.format(port=port))
    netcat.chmod(0o755)
    write_sshd_configuration(folder, _SERVER.format(port=port))
    (folder / "ssh.conf").write_text(_CLIENT.format(port=port, folder=folder, netcat=netcat))
    write_ssh(folder, ssh, tools)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    log = (folder / "sshd.log").open("wb")
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd.conf")], stderr=log)
    try:
        end = time.monotonic() + 20
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert server.poll() is None, (folder / "sshd.log").read_text()
            assert time.monotonic() < end, "sshd does not listen"
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()
        log.close()
