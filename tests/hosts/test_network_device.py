"""Which network device leads to the others."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from gpt2_ds.hosts.network_device import address_towards, device_of, name_gloo_device

NAME = "GLOO_SOCKET_IFNAME"


def test_the_loopback_device() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert device_of("127.0.0.1") == "lo"
    assert device_of("192.0.2.1") is None
    assert device_of("::1") is None
    with pytest.raises(socket.gaierror):
        address_towards("no-such-host.invalid")


def test_each_device_is_the_one_that_ip_names() -> None:
    """Held against iproute2, where it is installed."""
    try:
        lines = subprocess.run(
            ["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except FileNotFoundError:
        pytest.skip("ip is missing: apt-get install iproute2")
    for line in lines:
        _, device, _, address, *_ = line.split()
        assert device_of(address.partition("/")[0]) == device


def test_gloo_is_told_only_between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    name_gloo_device(["127.0.0.1"], "127.0.0.1")
    assert NAME not in os.environ
    name_gloo_device(["192.0.2.9", "127.0.0.1"], "192.0.2.9")  # an address that no device has
    assert NAME not in os.environ
    name_gloo_device(["127.0.0.1", "127.0.0.2"], "127.0.0.1")
    assert os.environ[NAME] == "lo"
    monkeypatch.setenv(NAME, "eth7")
    name_gloo_device(["127.0.0.1", "127.0.0.2"], "127.0.0.1")
    assert os.environ[NAME] == "eth7"


def test_the_machine_that_the_master_names_looks_towards_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NAME, "")
    monkeypatch.delenv(NAME)
    asked = []

    def towards(host: str) -> str:
        asked.append(host)
        return "127.0.0.1"

    monkeypatch.setattr("gpt2_ds.hosts.network_device.address_towards", towards)
    name_gloo_device(["127.0.1.1", "10.0.0.2"], "127.0.1.1")
    assert (asked, os.environ[NAME]) == (["10.0.0.2"], "lo")


def test_no_way_to_the_others_leaves_gloo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    name_gloo_device(["127.0.1.1", "no-such-host.invalid"], "127.0.1.1")
    assert NAME not in os.environ
    assert socket.if_nameindex()
