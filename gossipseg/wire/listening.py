"""Why an address cannot be listened on, and whether that may pass."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gossipseg.errors import EXIT_CONFIG, LocalError
from gossipseg.wire.addresses import split_address

Why = Literal["late", "taken", "refused"]
LATE = {
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENODEV,
}
"""No interface has the address yet."""
SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""This machine lacks a resource for the moment."""


class CannotListen(LocalError):
    """Listening failed. `why` is one of three codes.

    `late`: the address is not this machine's yet, or the machine lacks a resource. `taken`: another process
    has the port. `refused`: for good.
    """

    def __init__(self, text: str, why: Why) -> None:
        super().__init__(text)
        self.why: Why = why
        if why == "refused":  # no start after this one would end otherwise
            self.exit_code = EXIT_CONFIG


def reason_of(error: OSError) -> Why:
    """The code of an OSError: late, taken or refused."""
    if isinstance(error, socket.gaierror) or error.errno in LATE | SHORT:
        return "late"
    return "taken" if error.errno == errno.EADDRINUSE else "refused"


async def require_name(listen: str) -> None:
    """Resolve the host in the background, since a silent name server takes its time. Raises CannotListen."""
    host, port = split_address(listen)
    try:
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise cannot_listen(listen, e) from e


def why_not(listen: str, error: Exception) -> CannotListen:
    """The OSError that gRPC's listening failed with: gRPC hides it, so a plain socket is tried."""
    host, port = split_address(listen)
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(address)
            s.listen()
    except OSError as e:
        return cannot_listen(listen, e)
    # It works now: another process has freed the port, or the address has come meanwhile.
    return CannotListen(f"{listen}: this site could not listen there: {error}.", "taken")


def cannot_listen(listen: str, error: OSError) -> CannotListen:
    """The error with what to do about it."""
    _, port = split_address(listen)
    why = reason_of(error)
    holder = f"{name}; " if why == "taken" and (name := port_holder(port)) else ""
    remedy = {
        "late": "The address must be one of this machine's (`ip address` lists them), or correct `listen` in "
        "site.yaml.",
        "taken": f"If another process has port {port} ({holder}`ss -ltnp 'sport = :{port}'` names it), stop "
        "it or choose another port in site.yaml (listen).",
        "refused": "Choose another port in site.yaml (listen), of 1024 or above, or give the service "
        "CAP_NET_BIND_SERVICE.",
    }[why]
    if error.errno in SHORT:
        remedy = "Let it have more files (LimitNOFILE= of the service, ulimit -n) or memory."
    return CannotListen(f"{listen}: this site cannot listen there: {error.strerror or error}. {remedy}", why)


def port_holder(port: int, proc: Path = Path("/proc")) -> str:
    """Name and number of the process that listens there; "" where it is another user's, or unknown."""
    sockets = {f"socket:[{inode}]" for inode in _listeners(port, proc)}
    for process in proc.glob("[0-9]*") if sockets else ():
        try:
            if any(str(fd.readlink()) in sockets for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()}, process {process.name}"
        except OSError:
            continue
    return ""


def _listeners(port: int, proc: Path) -> Iterator[str]:
    """Inodes of the sockets that listen on a port."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]
