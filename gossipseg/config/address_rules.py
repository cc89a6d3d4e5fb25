"""The form of an address in a file, and the texts about an invalid one."""

from __future__ import annotations

import ipaddress

from gossipseg.config.reading import Source
from gossipseg.errors import ConfigError
from gossipseg.wire.addresses import split_address


def check_address(address: str, key: str, source: Source, *, dialled: bool = False) -> None:
    """Check host:port; `dialled`: by other sites. Raises ConfigError."""
    try:
        host, port = split_address(address)
    except ConfigError as e:
        problem, remedy = _address_problem(address)
        raise source.error(problem or e.problem, key, address, remedy or e.remedy) from None
    if dialled and (host in ("0.0.0.0", "::") or port == 0):
        raise source.error(
            "cannot be dialled by other sites",
            key,
            address,
            "Give the name or address, and the port, under which the others reach this site.",
        )


def _address_problem(address: str) -> tuple[str, str]:
    """The problem of an unreadable address, and the remedy; empty where it is not plain."""
    remedy = "Write host:port, 192.0.2.7:7443 or [2001:db8::7]:7443."
    if "/" in address:
        return "is a URL, not host:port", remedy
    if address.count(":") > 1 and not address.startswith("["):
        return "is an IPv6 address without brackets", f"Write [{address}]:7443, where 7443 is the port."
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return "has no port", f"Write {address or 'host'}:7443, where 7443 is the port."
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        return "has a bad port: a whole number up to 65535 is needed", remedy
    return ("has no host name" if not host else "has no valid host name"), remedy


def check_ip(text: str, key: str, source: Source) -> None:
    """Check an IP address without a port. Raises ConfigError."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise source.error(
            "is no IP address", key, text, "Write the interface's IP address, such as 192.168.1.5."
        ) from None
