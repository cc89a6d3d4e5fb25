"""grpc.health.v1: SERVING or NOT_SERVING for each service, for the daemon's supervisor.

Nothing but these two states is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio

ALL = ""
"""The daemon as a whole."""
CONTROL, PEER, TRAINING = "gossipseg.wire.Control", "gossipseg.wire.Peer", "gossipseg.training"
_WORD = health_pb2.HealthCheckResponse


class HealthBoard:
    """The present states; Watch streams of the control socket follow every change."""

    def __init__(self) -> None:
        self._servicer = aio.HealthServicer()
        self._told: dict[str, bool] = {}

    def attach(self, server: Any) -> None:
        """Serve it on a grpc.aio server that is not started yet."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def tell(self, services: Mapping[str, bool]) -> None:
        """Set which services serve; the others keep their state."""
        for service, serving in services.items():
            if self._told.get(service) is not serving:
                self._told[service] = serving
                await self._servicer.set(service, _WORD.SERVING if serving else _WORD.NOT_SERVING)

    async def close(self) -> None:
        """Set every service to NOT_SERVING."""
        await self._servicer.enter_graceful_shutdown()


def check(request: bytes, services: Mapping[str, bool]) -> bytes | None:
    """The answer to one Check; None where the service is not known or the request cannot be read."""
    try:
        service = health_pb2.HealthCheckRequest.FromString(request).service
    except Exception:  # protobuf's DecodeError, whose class depends on its implementation
        return None
    if service not in services:
        return None
    status = _WORD.SERVING if services[service] else _WORD.NOT_SERVING
    return bytes(_WORD(status=status).SerializeToString())
