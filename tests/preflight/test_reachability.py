"""Hosts that let this machine in, and those that do not, with a real sshd."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.preflight import reachability
from gpt2_ds.preflight.reachability import Ssh, commands, reach
from gpt2_ds.preflight.verdicts import Check, Verdict, ok
from tests.preflight.ssh_server import ssh_server


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with ssh_server(tmp_path, monkeypatch) as listening:
        yield listening


def only(host: str, ssh: Ssh | None = None) -> Check:
    _, check = reach({host: 1}, ssh or Ssh())
    assert check.name == f"host {host}"
    return check


def test_hosts_of_every_kind(port: int) -> None:
    assert only("good") == ok("host good", f"127.0.0.1 port {port} lets this user in")
    assert only("through").verdict is Verdict.OK  # by a proxy: no connection of our own
    assert only("noport", Ssh(port)).verdict is Verdict.OK

    keyless = only("keyless")
    assert keyless.verdict is Verdict.FAILED
    assert keyless.found == f"127.0.0.1 port {port}: no key of this user is accepted"
    assert keyless.fix == "Let this user in there: ssh-copy-id keyless."
    assert only("keyless", Ssh(port)).fix.endswith(f": ssh-copy-id -p {port} keyless.")

    stranger = only("stranger")
    assert stranger.found == f"127.0.0.1 port {port}: the host's key is unknown or has changed"
    assert stranger.fix == "Type ssh stranger once, and accept the host's key after checking it."

    closed = only("closed")
    assert closed.found == "127.0.0.1 port 1 refuses connections"
    assert closed.fix == "Start sshd on closed, or name its port with --ssh-port."

    unknown = only("no-such-host.invalid")
    assert unknown.found == "the name no-such-host.invalid cannot be resolved"
    assert unknown.fix == (
        "Correct the name in the hostfile, or add it to DNS, /etc/hosts or ~/.ssh/config."
    )


def test_all_hosts_at_once(port: int) -> None:
    launcher, *checks = reach({"good": 1, "closed": 2, "through": 3}, Ssh())
    assert launcher.name == "launcher"
    assert [check.verdict for check in checks] == [Verdict.OK, Verdict.FAILED, Verdict.OK]


def test_a_host_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "_CONNECT_SECONDS", 0.2)

    def no_answer(*args: object, **named: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(reachability.socket, "create_connection", no_answer)
    check = only("192.0.2.1")
    assert check.found == "192.0.2.1 port 22 does not answer within 0.2 s"
    assert check.fix == (
        "See whether 192.0.2.1 is up, and whether a firewall is between the machines."
    )

    def no_route(*args: object, **named: object) -> None:
        raise OSError(113, "No route to host")

    monkeypatch.setattr(reachability.socket, "create_connection", no_route)
    check = only("192.0.2.1")
    assert check.found == "192.0.2.1 port 22: No route to host"
    assert check.fix == "See whether 192.0.2.1 is up, and whether this machine has a route to it."


def fake_ssh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(reachability.socket, "create_connection", lambda *a, **n: _Link())


class _Link:
    def close(self) -> None:
        pass


def test_an_ssh_that_ends_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, 'echo one >&2; echo "kex: reset by peer" >&2; exit 255', monkeypatch)
    check = only("w")
    assert check.found == "w port 22: kex: reset by peer"
    assert check.fix == "Type ssh w, and see what it says."
    fake_ssh(tmp_path, "exit 255", monkeypatch)
    assert only("w").found == "w port 22: ssh ended with exit code 255"


def test_an_ssh_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(reachability, "_LOGIN_SECONDS", 0.5)
    began = time.monotonic()
    check = only("w", Ssh(2222))
    assert time.monotonic() - began < 10
    assert check.found == "w port 2222: ssh did not end within 0 s"
    assert check.fix == (
        "Type ssh -p 2222 w, and see where it stops: before the login, or after it, in a start-up "
        "file of the shell there (~/.bashrc)."
    )


def test_programs_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = reach({"w": 1}, Ssh())
    assert (check.name, check.verdict) == ("ssh", Verdict.FAILED)
    assert check.found == "is not installed on this machine"
    assert check.fix == "Install it: apt-get install openssh-client."
    fake_ssh(tmp_path, "exit 0", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    launcher, _ = reach({"w": 1}, Ssh())
    assert launcher.verdict is Verdict.WARNING
    assert launcher.found == "pdsh, which deepspeed uses unless told otherwise, is missing"
    assert launcher.fix == "Install it: apt-get install pdsh. Or give deepspeed --launcher openmpi."


def test_the_commands_are_quoted() -> None:
    there = f"'cd {Path.cwd()} && {sys.executable} -V'"
    assert commands({"a": 1, "b": 2}, Ssh(2222)).splitlines() == [
        "ssh -G -p 2222 a",
        f"ssh -o BatchMode=yes -o ConnectTimeout=5 -p 2222 a {there}",
        "ssh -G -p 2222 b",
        f"ssh -o BatchMode=yes -o ConnectTimeout=5 -p 2222 b {there}",
    ]
    quoted = commands({"a b": 1}, Ssh())  # read_hostfile lets none through
    assert subprocess.run(
        ["bash", "-c", f"printf '%s,' {quoted.splitlines()[0]}"], capture_output=True, text=True
    ).stdout == ("ssh,-G,a b,")
