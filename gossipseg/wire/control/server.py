"""The daemon's end of the control socket: it listens, asks a handler, and sends the handler's answers."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import grpc

from gossipseg.errors import GossipsegError, LocalError
from gossipseg.wire import control_pb2, control_pb2_grpc
from gossipseg.wire.control.limits import DEFAULT_LIMIT, MAX_DOCUMENT_BYTES, MAX_LIMIT
from gossipseg.wire.control.path import SocketAddress, remove_stale
from gossipseg.wire.documents import (
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
from gossipseg.wire.health import HealthBoard

_log = logging.getLogger(__name__)


class ControlHandler(Protocol):
    """The daemon's answers. A raised errors.GossipsegError has its text shown to the operator."""

    async def status(self) -> StatusDoc: ...

    async def peers(self, limit: int) -> PeersDoc: ...

    async def exchanges(self, limit: int) -> ExchangesDoc: ...

    async def models(self) -> ModelsDoc: ...

    async def rounds(self) -> RoundsDoc: ...

    async def events(self, limit: int, since: int) -> EventsDoc: ...

    async def dump(self) -> DumpDoc: ...

    async def reach(self) -> ReachDoc: ...

    async def pause(self) -> OkDoc: ...

    async def resume(self) -> OkDoc: ...

    async def leave(self) -> OkDoc: ...

    async def reload(self) -> OkDoc: ...

    async def quarantine(self) -> QuarantineDoc: ...

    async def lift_quarantine(self, site: str) -> OkDoc: ...

    def watch(self) -> AsyncIterator[WatchDoc]:
        """Frames until the caller goes away (the iterator is then closed)."""
        ...


class ControlServer:
    """Answers on `path`, which only this user may open (0600). To be used on one event loop."""

    def __init__(self, path: Path, handler: ControlHandler, health: HealthBoard | None = None) -> None:
        self.path, self._servicer, self._health = path.absolute(), _Servicer(handler), health
        self._server: Any = None
        self._address: SocketAddress | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen. A socket file that no server answers on is replaced.

        Raises AlreadyRunning when a server answers on it, LocalError when it cannot be made.
        """
        address = SocketAddress(self.path)
        try:
            remove_stale(self.path, address.text)
            self._server = _serve(self._servicer, address.target, self.path, self._health)
            self.path.chmod(0o600)
            self._inode = self.path.lstat().st_ino
            await self._server.start()
        except BaseException as e:
            address.close()
            if isinstance(e, OSError):
                raise LocalError(f"{self.path}: cannot make the control socket: {e.strerror or e}.") from e
            raise
        self._address = address

    @property
    def intact(self) -> bool:
        """Whether the socket file is still the one that this server made."""
        try:
            return self.path.lstat().st_ino == self._inode
        except OSError:
            return False

    async def renew(self) -> None:
        """Make the socket again after its file was removed. Raises LocalError, AlreadyRunning."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)
        if self._address is not None:
            self._address.close()
            self._address = None
        await self.start()

    async def close(self, grace_s: float = 0.5) -> None:
        """Stop listening; calls in progress have `grace_s` to end. The socket file is removed."""
        if self._server is None:
            return
        if self._health is not None:
            await self._health.close()
        await self._server.stop(grace_s)  # gRPC removes the file
        self._server = None
        if self._address is not None:
            self._address.close()


def _serve(servicer: _Servicer, target: str, path: Path, health: HealthBoard | None) -> Any:
    server = grpc.aio.server(options=[("grpc.max_send_message_length", MAX_DOCUMENT_BYTES)])
    control_pb2_grpc.add_ControlServicer_to_server(servicer, server)
    if health is not None:
        health.attach(server)
    before = os.umask(0o177)  # the file must not be open to others for the moment before a chmod
    try:
        server.add_insecure_port(target)
    except RuntimeError as e:
        raise LocalError(
            f"{path}: cannot listen on the control socket: {e}. "
            f"Check that {path.parent} exists and is writable, or set control_socket in site.yaml."
        ) from e
    finally:
        os.umask(before)
    return server


class _Servicer(control_pb2_grpc.ControlServicer):  # type: ignore[misc]
    def __init__(self, handler: ControlHandler) -> None:
        self._handler = handler

    async def Status(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.status, context)

    async def Peers(self, query: Any, context: Any) -> Any:
        return await _answer(lambda: self._handler.peers(_limit(query, MAX_LIMIT)), context)

    async def Exchanges(self, query: Any, context: Any) -> Any:
        return await _answer(lambda: self._handler.exchanges(_limit(query)), context)

    async def Models(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.models, context)

    async def Rounds(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.rounds, context)

    async def Events(self, query: Any, context: Any) -> Any:
        return await _answer(lambda: self._handler.events(_limit(query), query.since), context)

    async def Dump(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.dump, context)

    async def Reach(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.reach, context)

    async def Pause(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.pause, context)

    async def Resume(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.resume, context)

    async def Leave(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.leave, context)

    async def Reload(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.reload, context)

    async def Quarantine(self, query: Any, context: Any) -> Any:
        return await _answer(self._handler.quarantine, context)

    async def LiftQuarantine(self, query: Any, context: Any) -> Any:
        return await _answer(lambda: self._handler.lift_quarantine(query.site), context)

    async def Watch(self, query: Any, context: Any) -> AsyncIterator[Any]:
        frames = self._handler.watch()
        try:
            async for frame in frames:
                yield _document(frame)
        except GossipsegError as e:
            await _abort(context, e)
        finally:
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()


async def _answer(ask: Callable[[], Awaitable[Document]], context: Any) -> Any:
    try:
        return _document(await ask())
    except GossipsegError as e:
        await _abort(context, e)
    except Exception as e:
        # A bug in one answer must not be silent, nor stop the daemon.
        _log.exception("a control request failed")
        await context.abort(grpc.StatusCode.INTERNAL, f"{type(e).__name__}: {e}")


async def _abort(context: Any, error: GossipsegError) -> None:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))


def _document(document: Document) -> Any:
    return control_pb2.Document(json=document.to_json())


def _limit(query: Any, default: int = DEFAULT_LIMIT) -> int:
    return min(int(query.limit), MAX_LIMIT) if query.limit > 0 else default
