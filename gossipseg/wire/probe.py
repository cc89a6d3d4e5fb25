"""Finds out whose address it is, by one short TLS handshake: for error texts and `gossipctl check`."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Literal

from gossipseg.certificates import site_id
from gossipseg.errors import ConfigError
from gossipseg.trust import Identity
from gossipseg.wire.addresses import split_address

_ALPN = ["h2"]
_Info = tuple[Any, Any, int, str, Any]
"""One of socket.getaddrinfo's answers."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe of an address showed."""

    address: str
    certificate_pem: bytes | None = None
    """The certificate shown, unverified; None when none was."""
    id: str = ""
    """The site ID of its key. It is "" without a certificate, or when the kind of key is not allowed."""
    accepted: bool | None = None
    """Whether the other side accepted this site's certificate; None when it was not shown or not judged."""
    detail: str = ""
    """What went wrong, in the system's words."""
    stage: Literal["", "dns", "port", "tls"] = ""
    """Where it went wrong: finding the host's address, reaching the port, shaking hands."""
    ip: str = ""
    """The IP addresses that were tried."""

    @property
    def reached(self) -> bool:
        """Whether something that speaks TLS answered."""
        return self.certificate_pem is not None


def seen_certificate(
    address: str, identity: Identity | None = None, timeout_s: float = 3.0, max_segment: int | None = None
) -> Seen:
    """Connect, shake hands without verifying, and report what was seen. Blocks for at most about `timeout_s`.

    With an identity its certificate is shown, so that `accepted` says whether the other side lists it.
    `max_segment`: most bytes of data per packet, for both sides, as TCP agrees on at the start. Raises
    ConfigError for a malformed address; every other failure is in the answer.
    """
    host, port = split_address(address)
    context = _context(identity)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:  # a name with an empty or overlong part is a UnicodeError
        return Seen(address, detail=_text(e), stage="dns")
    ips = ", ".join(dict.fromkeys(str(where[0]) for *_, where in found))
    try:
        plain = _connected(found, timeout_s, max_segment)
    except OSError as e:
        return Seen(address, detail=_text(e), stage="port", ip=ips)
    try:
        with plain, context.wrap_socket(plain, server_hostname=None) as tls:
            der = tls.getpeercert(binary_form=True)
            pem = ssl.DER_cert_to_PEM_cert(der).encode() if der else None
            accepted, detail = _judged(tls) if identity is not None else (None, "")
    except OSError as e:  # ssl.SSLError and TimeoutError are OSErrors
        return Seen(address, detail=_text(e), stage="tls", ip=ips)
    return Seen(address, pem, _id(pem), accepted, detail)


def _connected(found: list[_Info], timeout_s: float, max_segment: int | None) -> socket.socket:
    """A connection to the first of these addresses that accepts one. Raises the last one's OSError."""
    error = OSError("no address")
    for family, kind, protocol, _, where in found:
        plain = socket.socket(family, kind, protocol)
        try:
            plain.settimeout(timeout_s)
            if max_segment is not None:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, max_segment)
            plain.connect(where)
        except OSError as e:
            plain.close()
            error = e
        else:
            return plain
    raise error


def seen_port(address: str, timeout_s: float = 3.0) -> Seen:
    """The same without TLS: whether a connection can be made. Blocks; raises ConfigError."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        return Seen(address, detail=_text(e), stage="dns")
    ips = ", ".join(dict.fromkeys(str(where[0]) for *_, where in found))
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError as e:
        return Seen(address, detail=_text(e), stage="port", ip=ips)
    return Seen(address, ip=ips)


def _context(identity: Identity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(_ALPN)
    if identity is not None:
        _show(context, identity)
    return context


def _show(context: ssl.SSLContext, identity: Identity) -> None:
    """Show the pair in use, from memory: the files may already hold the next pair, or one file of each.

    ssl reads only files. This one is in memory, and has no name that others could open.
    """
    with os.fdopen(os.memfd_create("identity", os.MFD_CLOEXEC), "wb") as file:
        file.write(identity.certificate_pem.rstrip() + b"\n" + identity.key_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _judged(tls: ssl.SSLSocket) -> tuple[bool | None, str]:
    """Whether the server accepted our certificate: with TLS 1.3 its next message tells, after our side is
    done."""
    try:
        return (True, "") if tls.recv(1) else (False, "the connection was closed after the handshake")
    except TimeoutError:
        return None, "no message after the handshake"
    except OSError as e:
        return False, _text(e)


def _id(pem: bytes | None) -> str:
    with contextlib.suppress(ConfigError):
        return site_id(pem) if pem else ""
    return ""


def _text(error: OSError | UnicodeError) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
