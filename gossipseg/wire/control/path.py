"""The file of a unix socket: its address whatever its path, and whether a server answers behind it.

A unix socket's path may have at most 107 bytes, and gRPC reads it as a URI. A longer or unusual path is
reached through /proc/self/fd/<its directory>/<its name>. The socket still lies where it was asked for. Server
and client need to agree only on the path.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from pathlib import Path

from gossipseg.errors import AlreadyRunning, LocalError

_MAX_SOCKET_PATH_BYTES = 107
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/-]+")


class SocketAddress:
    """How to name a socket file to the kernel (`text`) and to gRPC (`target`), whatever its path."""

    def __init__(self, path: Path) -> None:
        """Raises LocalError when the directory does not exist, or the file's own name is impossible."""
        self._fd = -1
        self.text = str(path)
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES or not _PLAIN_PATH.fullmatch(self.text):
            try:
                self._fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as e:
                raise LocalError(f"{path.parent}: cannot be opened: {e.strerror}.") from e
            self.text = f"/proc/self/fd/{self._fd}/{path.name}"
            if len(self.text) > 90 or not _PLAIN_PATH.fullmatch(self.text):
                self.close()
                raise LocalError(
                    f"{path}: the name of the control socket must be short and of letters, digits, dot, dash "
                    "and underscore. Set control_socket in site.yaml, for example to control.sock."
                )
        self.target = f"unix:{self.text}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def probe(address: str) -> int:
    """0 if a server accepts connections there, else the errno."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1.0)
        try:
            s.connect(address)
        except TimeoutError:
            return 0  # its queue is full: a server is there, and busy
        except OSError as e:
            return 0 if e.errno == errno.EAGAIN else e.errno or errno.EIO
    return 0


def remove_stale(path: Path, address: str) -> None:
    """Remove a socket file that no server answers on.

    Raises AlreadyRunning when one does, LocalError when the file is no socket or cannot be examined.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LocalError(
            f"{path}: is in the way of the control socket and is no socket. "
            "Move it away, or set control_socket in site.yaml."
        )
    problem = probe(address)
    if problem == 0:
        raise AlreadyRunning(
            f"{path}: another daemon answers on this control socket. "
            "Stop it first, or set another control_socket or state_dir in site.yaml."
        )
    if problem != errno.ECONNREFUSED:
        raise LocalError(f"{path}: cannot tell whether a daemon uses it: {os.strerror(problem)}.")
    path.unlink()
