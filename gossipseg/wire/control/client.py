"""gossipctl's end of the control socket: it asks, and explains a missing answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from gossipseg.errors import DaemonUnreachable, LocalError
from gossipseg.wire import control_pb2, control_pb2_grpc
from gossipseg.wire.control.limits import MAX_DOCUMENT_BYTES, MAX_LIMIT, REACH_TIMEOUT_S
from gossipseg.wire.control.path import SocketAddress, probe
from gossipseg.wire.documents import (
    BadDocument,
    Document,
    DumpDoc,
    EventsDoc,
    ExchangesDoc,
    ModelsDoc,
    OkDoc,
    PeersDoc,
    QuarantineDoc,
    ReachDoc,
    RoundsDoc,
    StatusDoc,
    WatchDoc,
)

_D = TypeVar("_D", bound=Document)


class ControlClient:
    """Asks the daemon behind `path`; blocking. Every method raises DaemonUnreachable without an answer within
    `timeout_s`, and LocalError when the daemon answers with an error."""

    def __init__(self, path: Path, timeout_s: float = 5.0) -> None:
        self.path, self._timeout_s = path.absolute(), timeout_s
        try:
            self._address = SocketAddress(self.path)
        except LocalError as e:
            raise DaemonUnreachable(f"{e} {_remedy(errno.ENOENT)}") from e
        self._channel = grpc.insecure_channel(
            self._address.target,
            options=[
                ("grpc.max_receive_message_length", MAX_DOCUMENT_BYTES),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = control_pb2_grpc.ControlStub(self._channel)

    def status(self) -> StatusDoc:
        return self._ask("Status", StatusDoc)

    def peers(self, limit: int = 0) -> PeersDoc:
        return self._ask("Peers", PeersDoc, limit)

    def exchanges(self, limit: int = 0) -> ExchangesDoc:
        return self._ask("Exchanges", ExchangesDoc, limit)

    def models(self) -> ModelsDoc:
        return self._ask("Models", ModelsDoc)

    def rounds(self) -> RoundsDoc:
        return self._ask("Rounds", RoundsDoc)

    def events(self, limit: int = 0, since: int = 0) -> EventsDoc:
        """The newest `limit` events with seq > `since`, oldest first."""
        return self._ask("Events", EventsDoc, limit, since)

    def dump(self) -> DumpDoc:
        """The recording of the core."""
        return self._ask("Dump", DumpDoc)

    def reach(self) -> ReachDoc:
        """Dial every listed site, and have each dial this one. Takes up to REACH_TIMEOUT_S."""
        return self._ask("Reach", ReachDoc, timeout_s=REACH_TIMEOUT_S)

    def pause(self) -> OkDoc:
        return self._ask("Pause", OkDoc)

    def resume(self) -> OkDoc:
        return self._ask("Resume", OkDoc)

    def leave(self) -> OkDoc:
        return self._ask("Leave", OkDoc)

    def reload(self) -> OkDoc:
        return self._ask("Reload", OkDoc)

    def quarantine(self) -> QuarantineDoc:
        return self._ask("Quarantine", QuarantineDoc)

    def lift_quarantine(self, site: str) -> OkDoc:
        return self._ask("LiftQuarantine", OkDoc, site=site)

    def watch(self) -> Iterator[WatchDoc]:
        """Frames until the daemon ends (DaemonUnreachable) or the iterator is closed."""
        self._check_answered()
        call = self._stub.Watch(control_pb2.Query())
        try:
            for reply in call:
                yield self._read(WatchDoc, reply.json)
        except grpc.RpcError as e:
            raise self._error(e) from None
        finally:
            call.cancel()

    def close(self) -> None:
        self._channel.close()
        self._address.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self,
        method: str,
        kind: type[_D],
        limit: int = 0,
        since: int = 0,
        site: str = "",
        timeout_s: float | None = None,
    ) -> _D:
        self._check_answered()
        query = control_pb2.Query(limit=min(limit, MAX_LIMIT), since=since, site=site)
        try:
            reply = getattr(self._stub, method)(query, timeout=timeout_s or self._timeout_s)
        except grpc.RpcError as e:
            raise self._error(e) from None
        return self._read(kind, reply.json)

    def _check_answered(self) -> None:
        # gRPC calls every failure "unavailable"; the kernel says what is the matter.
        if problem := probe(self._address.text):
            raise DaemonUnreachable(
                f"{self.path}: nobody answers on the control socket: {os.strerror(problem)}. "
                f"{_remedy(problem)}"
            )

    def _read(self, kind: type[_D], text: str) -> _D:
        try:
            return kind.from_json(text)
        except BadDocument as e:
            raise LocalError(f"{self.path}: the daemon's answer cannot be read: {e}.") from e

    def _error(self, e: Any) -> LocalError:
        code, details = e.code(), e.details()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DaemonUnreachable(
                f"{self.path}: the daemon did not answer within {self._timeout_s:g} s. "
                "It may be starting, or stuck: look at its log."
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return DaemonUnreachable(f"{self.path}: the daemon went away ({details}). Look at its log.")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return LocalError(
                f"{self.path}: the daemon does not know this request. "
                "Use the gossipctl that came with the daemon, or restart the daemon after an upgrade."
            )
        return LocalError(str(details))


def _remedy(problem: int) -> str:
    if problem in (errno.EACCES, errno.EPERM):
        return "Only the daemon's own user may ask: run gossipctl as that user."
    if problem == errno.ENOENT:
        return "Start it with `gossipsegd --config site.yaml`, or name its site.yaml with --config."
    return "The daemon is not running (it may have been killed): start it again, and look at its log."
