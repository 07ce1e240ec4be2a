"""The network device through which this machine reaches the others."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of a device
_NAME_BYTES = 15


def address_towards(host: str) -> str:
    """This machine's own address on the way to `host`, in numbers. Sends nothing.

    Raises:
        OSError: the name is not known here, or no way leads there.
    """
    family, _, _, _, target = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        way.connect(target)
        return str(way.getsockname()[0])


def device_of(address: str) -> str | None:
    """The device that has an IPv4 address; None where none has, or it is not one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:_NAME_BYTES])
            try:
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def name_gloo_device(addresses: list[str], own: str) -> None:
    """Tell gloo which device to use between machines, unless GLOO_SOCKET_IFNAME already does.

    By itself gloo takes the address that this machine's own name has, which on Debian is 127.0.1.1:
    no other machine reaches that ("connectFullMesh failed").

    Args:
        addresses: of all machines, on their way to MASTER_ADDR.
        own: this machine's.
    """
    others = [address for address in addresses if address != own]
    if not others or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        if ipaddress.ip_address(own).is_loopback:  # the machine that MASTER_ADDR names
            own = address_towards(others[0])
    except (OSError, ValueError):
        return
    if device := device_of(own):
        os.environ["GLOO_SOCKET_IFNAME"] = device
