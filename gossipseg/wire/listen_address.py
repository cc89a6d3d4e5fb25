"""Whether `listen` fits the listed address, as far as this machine alone can tell."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gossipseg.wire.addresses import is_loopback, split_address

Resolve = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class ListenFault:
    """Why other sites may not find this one where it listens."""

    text: str
    remedy: str
    certain: bool
    """True: no setup makes this right; False: a proxy or a forwarded port may."""


def ips_of(host: str) -> list[str]:
    """The IP addresses of a host, as this machine resolves it; none where it cannot. Blocks."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def listen_fault(
    listen: str, dialled: str, others: Iterable[str], *, any_port: bool = False, resolve: Resolve = ips_of
) -> ListenFault | None:
    """Compare `listen` with the address that others dial (the listed one, or `advertise`).

    `others` are the other sites' addresses: where all of them are on this machine, too, loopback is right.
    `any_port`: the port is announced on the local link. Blocks while names are resolved.
    """
    (host, port), (listed_host, listed_port) = split_address(listen), split_address(dialled)
    loopback = _loopback_of(host, resolve)
    if loopback and not is_loopback(dialled) and not _all_here(others, resolve):
        named = loopback != host and not _is_localhost(host)
        where = f"{host}, which is {loopback} on this machine" if named else host
        return ListenFault(
            f"listen is {listen}: {where}. Only this machine gets there, and others dial {dialled}",
            f"Write listen: 0.0.0.0:{port} in site.yaml"
            + (
                f" (or mend the line of {host} in /etc/hosts)."
                if named
                else ", or the interface's IP address."
            ),
            certain=named,
        )
    if port == 0 and not any_port:
        return ListenFault(
            f"listen is {listen}: any free port, and others dial {dialled}",
            f"Write the listed port in site.yaml: listen: {host}:{listed_port}.",
            certain=False,
        )
    if port not in (0, listed_port):
        return ListenFault(
            f"listen is {listen}, and others dial {dialled}: the ports differ",
            f"Unless something forwards port {listed_port} of {listed_host} to {port} here, write one port "
            "in site.yaml (listen) and in peers.yaml (address).",
            certain=False,
        )
    return None


def _loopback_of(host: str, resolve: Resolve) -> str:
    """The loopback address of a host; "" where it has another one."""
    found = [host] if _is_ip(host) else resolve(host)
    return next((ip for ip in found[:1] if ipaddress.ip_address(ip.partition("%")[0]).is_loopback), "")


def _all_here(addresses: Iterable[str], resolve: Resolve) -> bool:
    """Whether every other site is on this machine, as in a testbed, or there is none."""
    hosts = {split_address(a)[0] for a in addresses if a}
    return all(_loopback_of(host, resolve) for host in hosts)


def _is_localhost(host: str) -> bool:
    """Whether a name is commonly known as loopback: a tunnel or a proxy may stand before it."""
    return host.lower().rstrip(".").split(".")[0] in ("localhost", "ip6-localhost", "ip6-loopback")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
