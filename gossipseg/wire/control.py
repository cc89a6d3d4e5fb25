"""The control socket: the daemon's server (grpc.aio) and gossipctl's client (plain grpc).

What belongs here: carrying documents over a unix socket, and its failures in words.
What must not: what the documents say (daemon), how they look (ctl), torch, any network port.

A unix socket's path may have 107 bytes at most, and gRPC reads it as a URI. A longer or unusual path is
reached through /proc/self/fd/<its directory>/<its name>: the socket lies where it was asked for, and
server and client need not agree on anything but the path.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from gossipseg.errors import AlreadyRunning, DaemonUnreachable, GossipsegError, LocalError
from gossipseg.wire import control_pb2, control_pb2_grpc
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
    RoundsDoc,
    StatusDoc,
    WatchDoc,
)
from gossipseg.wire.health import HealthBoard

_log = logging.getLogger(__name__)
_D = TypeVar("_D", bound=Document)
DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_DOCUMENT_BYTES = 64 << 20
_MAX_SOCKET_PATH_BYTES = 107
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/-]+")


class ControlHandler(Protocol):
    """What the daemon answers. Raise errors.GossipsegError to have its text shown to the operator."""

    async def status(self) -> StatusDoc: ...

    async def peers(self, limit: int) -> PeersDoc: ...

    async def exchanges(self, limit: int) -> ExchangesDoc: ...

    async def models(self) -> ModelsDoc: ...

    async def rounds(self) -> RoundsDoc: ...

    async def events(self, limit: int, since: int) -> EventsDoc: ...

    async def dump(self) -> DumpDoc: ...

    async def pause(self) -> OkDoc: ...

    async def resume(self) -> OkDoc: ...

    async def leave(self) -> OkDoc: ...

    async def reload(self) -> OkDoc: ...

    async def quarantine(self) -> QuarantineDoc: ...

    async def lift_quarantine(self, site: str) -> OkDoc: ...

    def watch(self) -> AsyncIterator[WatchDoc]:
        """Frames until the caller goes away (the iterator is then closed)."""
        ...


# ---------------------------------------------------------------- the server


class ControlServer:
    """Answers on `path`, which only this user may open (0600). To be used on one event loop."""

    def __init__(self, path: Path, handler: ControlHandler, health: HealthBoard | None = None) -> None:
        self.path, self._servicer, self._health = path.absolute(), _Servicer(handler), health
        self._server: Any = None
        self._address: _Address | None = None

    async def start(self) -> None:
        """Listen. A socket file that nobody answers on is replaced.

        Raises AlreadyRunning when somebody answers on it, LocalError when it cannot be made.
        """
        address = _Address(self.path)
        try:
            _remove_stale(self.path, address.text)
            self._server = _serve(self._servicer, address.target, self.path, self._health)
            self.path.chmod(0o600)
            await self._server.start()
        except BaseException as e:
            address.close()
            if isinstance(e, OSError):
                raise LocalError(f"{self.path}: cannot make the control socket: {e.strerror or e}.") from e
            raise
        self._address = address

    async def close(self, grace_s: float = 0.5) -> None:
        """Stop listening; calls in progress have `grace_s` to end. The socket file goes."""
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
        # A mistake of ours in one answer must not be silent, nor stop the daemon.
        _log.exception("a control request failed")
        await context.abort(grpc.StatusCode.INTERNAL, f"{type(e).__name__}: {e}")


async def _abort(context: Any, error: GossipsegError) -> None:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))


def _document(document: Document) -> Any:
    return control_pb2.Document(json=document.to_json())


def _limit(query: Any, default: int = DEFAULT_LIMIT) -> int:
    return min(int(query.limit), MAX_LIMIT) if query.limit > 0 else default


# ---------------------------------------------------------------- the client


class ControlClient:
    """Asks the daemon behind `path`; blocking. Every method raises DaemonUnreachable when nobody answers
    within `timeout_s`, LocalError when the daemon answers with an error.
    """

    def __init__(self, path: Path, timeout_s: float = 5.0) -> None:
        self.path, self._timeout_s = path.absolute(), timeout_s
        try:
            self._address = _Address(self.path)
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
        """Frames until the daemon goes (DaemonUnreachable) or the iterator is closed."""
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

    def _ask(self, method: str, kind: type[_D], limit: int = 0, since: int = 0, site: str = "") -> _D:
        self._check_answered()
        query = control_pb2.Query(limit=min(limit, MAX_LIMIT), since=since, site=site)
        try:
            reply = getattr(self._stub, method)(query, timeout=self._timeout_s)
        except grpc.RpcError as e:
            raise self._error(e) from None
        return self._read(kind, reply.json)

    def _check_answered(self) -> None:
        # gRPC says "unavailable" to everything; the kernel says what is the matter.
        if problem := _probe(self._address.text):
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


# ---------------------------------------------------------------- the path


class _Address:
    """How to name a socket file to the kernel (`text`) and to gRPC (`target`), whatever its path."""

    def __init__(self, path: Path) -> None:
        """Raises LocalError when the directory is not there, or the file's own name is impossible."""
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


def _probe(address: str) -> int:
    """0 if somebody accepts connections there, else the errno."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1.0)
        try:
            s.connect(address)
        except TimeoutError:
            return 0  # its queue is full: somebody is there, and busy
        except OSError as e:
            return 0 if e.errno == errno.EAGAIN else e.errno or errno.EIO
    return 0


def _remove_stale(path: Path, address: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LocalError(
            f"{path}: is in the way of the control socket and is no socket. "
            "Move it away, or set control_socket in site.yaml."
        )
    problem = _probe(address)
    if problem == 0:
        raise AlreadyRunning(
            f"{path}: another daemon answers on this control socket. "
            "Stop it first, or set another control_socket or state_dir in site.yaml."
        )
    if problem != errno.ECONNREFUSED:
        raise LocalError(f"{path}: cannot tell whether a daemon uses it: {os.strerror(problem)}.")
    path.unlink()
