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

from tests.launch.unavailable import unavailable
from tests.ranks import free_port

# HOME: no start-up file of the user's shell, which may take any time.
_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={folder}
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
    for name in ("host_key", "user_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}good {key}[good]:{port} {key}")
    netcat, tools = folder / "netcat", folder / "tools"
    netcat.write_text(_NETCAT.format(port=port))
    (folder / "sshd.conf").write_text(_SERVER.format(port=port, folder=folder))
    (folder / "ssh.conf").write_text(_CLIENT.format(port=port, folder=folder, netcat=netcat))
    tools.mkdir()
    (tools / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {folder}/ssh.conf "$@"\n')
    for path in (netcat, tools / "ssh"):
        path.chmod(0o755)
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
