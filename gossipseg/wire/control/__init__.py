"""The control socket: the daemon's server (grpc.aio) and gossipctl's client (plain grpc).

What belongs here: carrying documents over a unix socket, and its failures in words. What must not: the
contents of the documents (daemon), their display (ctl), torch, any network port.
"""

from __future__ import annotations

from gossipseg.wire.control.client import ControlClient
from gossipseg.wire.control.limits import DEFAULT_LIMIT, MAX_LIMIT
from gossipseg.wire.control.server import ControlHandler, ControlServer

__all__ = ["DEFAULT_LIMIT", "MAX_LIMIT", "ControlClient", "ControlHandler", "ControlServer"]
