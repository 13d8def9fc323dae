"""Under which addresses this node can be reached from others."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable

from exex.errors import ConfigError

_SIOCGIFADDR = 0x8915
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_IFREQ_BYTES = 40
_ELSEWHERE = ("192.0.2.1", 9)  # of no network, by RFC 5737: nothing is sent there


def read_interfaces() -> list[tuple[str, str]]:
    """Name and IPv4 address of each interface that is up, in the kernel's order."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{_IFREQ_BYTES}s", name.encode()[:15])
            try:
                flags = struct.unpack_from("=H", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)[0]
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
            except OSError:
                continue  # it has no IPv4 address
            if flags & _IFF_UP:
                found.append((name, socket.inet_ntoa(answer[20:24])))
    return found


def usual_addresses() -> list[str]:
    """What the kernel would send from to other networks, and what this node's name stands for."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
            found.append(probe.getsockname()[0])
        except OSError:
            pass  # it knows no way out
    try:
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    except OSError:
        pass  # its name stands for nothing
    return found


def choose_addresses(interfaces: Iterable[tuple[str, str]], usual: Iterable[str], wanted: str = "") -> list[str]:
    """Addresses for clients to try, the likeliest first. Pure.

    Args:
        interfaces: see `read_interfaces`.
        usual: see `usual_addresses`.
        wanted: name of an interface, or an address; "" for all but loopback, or that if there is no other.

    Raises:
        ConfigError: there is no such interface.
    """
    there = dict.fromkeys(address for _, address in interfaces)
    if wanted:
        of_it = [address for name, address in interfaces if name == wanted]
        if not of_it and not _is_address(wanted):
            named = ", ".join(f"{name} ({address})" for name, address in interfaces)
            raise ConfigError(f"--interface {wanted}: no interface of that name is up with an IPv4 address; there are {named}")
        return of_it or [wanted]
    order = [address for address in usual if address in there] + list(there)
    far = [address for address in dict.fromkeys(order) if not ipaddress.ip_address(address).is_loopback]
    return far or list(there) or ["127.0.0.1"]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_listen(text: str) -> tuple[str, int]:
    """Host ("" for any) and port of `[HOST:]PORT`.

    Raises:
        ConfigError: it is no such text.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--listen {text}: accepted: PORT or HOST:PORT, with a port up to 65535, 0 for any that is free")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bracketed(host: str) -> str:
    """As it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host
