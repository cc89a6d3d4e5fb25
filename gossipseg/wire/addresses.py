"""host:port texts: parsed, classified, and written in gRPC's form."""

from __future__ import annotations

import ipaddress

from gossipseg.errors import ConfigError


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of `host:port`, `1.2.3.4:port` or `[::1]:port`. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    sound = bool(colon and host) and port.isascii() and port.isdigit() and int(port) <= 65535
    if not sound or (":" in host) != bracketed or not _plausible_host(host):
        raise ConfigError(
            "this is not an address",
            key="address",
            value=address,
            remedy="Write host:port, 192.0.2.7:7443 or [2001:db8::7]:7443.",
        )
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The text of an address, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether an address can only be reached from this machine."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def grpc_target(address: str) -> str:
    """A gRPC target: literal addresses are dialled as they are, names are resolved."""
    host, port = split_address(address)
    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
    except ValueError:
        return f"dns:///{host}:{port}"
    return f"ipv{version}:{join_address(host, port)}"


def _plausible_host(host: str) -> bool:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    return len(host) <= 253 and all(c.isascii() and (c.isalnum() or c in "-._") for c in host)
