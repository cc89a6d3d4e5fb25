"""Handles peers' requests and incoming models: answers, checks, stores."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from gossipseg.bridge.expected_files import content_difference, header_room_bytes, most_bytes
from gossipseg.bridge.manifest_checks import Verifier, file_differs, marked
from gossipseg.core import events
from gossipseg.core.messages import Body, Reply, Request
from gossipseg.core.types import ModelRef, Record, Site, payload, signer_of
from gossipseg.errors import DiskFull, LocalError, PeerRefused
from gossipseg.store import (
    BrokenModel,
    IncompleteModel,
    ModelStore,
    PartialBusy,
    PartialModel,
    Schema,
    read_safetensors,
)

if TYPE_CHECKING:
    from gossipseg.core.node import NodeState

ANSWER_TIMEOUT_S = 30.0
RECORDS, RECORDS_PER_SITE = 64, 8
"""Records of a message that are looked at: a signature takes a tenth of a millisecond, and pings wait
meanwhile. An honest list has a record or two of each site, and one for each that accuses it."""
FORGED_AT_MOST = 8
"""Forged records after which the rest of a message is not looked at."""
TELL_EVERY_S = 2.0
"""Seconds between two reports to the core that a promised model is arriving."""
_B = TypeVar("_B", bound=Body)
InThread = Callable[..., Awaitable[Any]]
"""asyncio.to_thread, or its replacement."""


class Intake:
    """The wire's Handler. `inject` feeds the core; `schemas`, from the worker, are those of the exchanged
    files."""

    def __init__(
        self,
        node: NodeState,
        inject: Callable[[events.Event], None],
        store: ModelStore,
        verifier: Verifier,
        *,
        disk_reserve_bytes: int,
        moved: Callable[[str, Site, str, float], None],
        forged: Callable[[Site, Record, int], None],
        clock: Callable[[], float] = time.monotonic,
        in_thread: InThread = asyncio.to_thread,
    ) -> None:
        """`forged(peer, record, more)`: a message of `peer` held `more` + 1 records that their signer did not
        sign.

        `clock` gives monotonic seconds. `in_thread` runs work that waits for the disk.
        """
        self.verifier = verifier
        self.schemas: Mapping[str, Schema] = {}
        """The content of a file of each kind (core.types.ModelKind)."""
        self._node, self._inject, self._store = node, inject, store
        self._reserve_bytes, self._moved, self._forged = disk_reserve_bytes, moved, forged
        self._clock, self._in_thread = clock, in_thread
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._old_partials = set(store.partials())
        """(hash, peer) of files begun before this start: a power cut may have damaged them."""

    # ------------------------------------------------------------ requests

    async def on_request(self, peer: Site, body: Request) -> Reply:
        """Let the core answer. Raises PeerRefused without an answer in time."""
        token = next(self._tokens)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        try:
            self._inject(events.Incoming(peer, token, self.verified(peer, body)))
            return await asyncio.wait_for(future, ANSWER_TIMEOUT_S)
        except TimeoutError:
            raise PeerRefused(peer, "no_answer", "the daemon did not answer in time") from None
        finally:
            self._waiting.pop(token, None)

    @property
    def waiting(self) -> int:
        """Requests of peers that the core has not answered yet."""
        return len(self._waiting)

    def respond(self, token: int, body: Reply) -> None:
        """Deliver the core's answer to a request; nobody waits for a late one."""
        future = self._waiting.get(token)
        if future is not None and not future.done():
            future.set_result(body)

    def verified(self, peer: Site, body: _B) -> _B:
        """The message without records that their signer did not sign. Every invalid manifest in it is
        marked."""
        body = marked(body, self.verifier, self.schemas)
        records: tuple[Record, ...] = getattr(body, "records", ())
        if not records:
            return body
        good: list[Record] = []
        bad: list[Record] = []
        # Lists are not reloaded everywhere at once: a record of an unlisted site is no forgery.
        known = [record for record in records if signer_of(record) in self.verifier.sites]
        for record in known[: RECORDS + RECORDS_PER_SITE * len(self.verifier.sites)]:
            if len(bad) == FORGED_AT_MOST:
                break
            signed = self.verifier.verify(signer_of(record), payload(record), record.signature)
            (good if signed else bad).append(record)
        if bad:  # reported once a message: a thousand forgeries must not push all else out of the event log
            self._forged(peer, bad[0], len(bad) - 1)
        return dataclasses.replace(body, records=tuple(good))  # type: ignore[arg-type]

    # ------------------------------------------------------------ models

    async def push_offset(self, peer: Site, model: ModelRef) -> int:
        """Bytes of a promised model that are here already."""
        self._require_promised(peer, model)
        with await self._open(peer, model) as partial:
            return partial.offset

    async def on_push(self, peer: Site, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        """Stream a promised model to disk, check it, hand it to the core.

        Its content must be what was promised, whatever the stream declares of itself.
        """
        model = self._require_promised(peer, model)
        if (schema := self.schemas.get(model.kind)) and model.kind != "personal":
            most = most_bytes(model.kind, schema, self.verifier.sites)
            if model.size_bytes > most:
                self._broken(peer, model, "too_large", f"{model.size_bytes} bytes; its tensors take {most}")
        with await self._open(peer, model) as partial:
            if offset != partial.offset:
                raise PeerRefused(
                    peer, "wrong_offset", f"stream starts at {offset}, {partial.offset} are here"
                )
            if not offset:
                self._old_partials.discard((model.hash, peer))
            if self._store.free_bytes() - (model.size_bytes - offset) < self._reserve_bytes:
                self._broken(peer, model, "disk_full", "receiving it would leave too little free disk")
            try:
                await self._write(peer, model, partial, chunks)
                await self._in_thread(partial.finish, model.hash, model.size_bytes)
            except IncompleteModel as e:  # the received part is kept for a resume; the promise stands
                raise PeerRefused(peer, e.reason, str(e)) from None
            except BrokenModel as e:
                if e.reason == "hash_mismatch" and (model.hash, peer) in self._old_partials:
                    self._old_partials.discard((model.hash, peer))  # the file is gone: the next is all new
                    self._broken(peer, model, "partial_damaged", str(e))
                signed = e.reason == "hash_mismatch" and model.manifest is not None
                self._broken(peer, model, "manifest_mismatch" if signed else e.reason, str(e))
            except PeerRefused as e:
                if e.reason != "too_large":  # more than was declared
                    raise
                self._broken(peer, model, e.reason, e.detail)
            except DiskFull as e:
                self._broken(peer, model, "disk_full", str(e))
        await self._check_header(peer, model)
        if self._node.expects(peer, model.hash) is None:  # its time was over, or this site wants no more
            self._forget(model)
            raise PeerRefused(peer, "too_late", "this site no longer expects it")
        self._inject(events.ModelArrived(peer, model))

    async def _open(self, peer: Site, model: ModelRef) -> PartialModel:
        open_ = functools.partial(self._store.partial, model.hash, peer, size_bytes=model.size_bytes)
        opening = asyncio.ensure_future(self._in_thread(open_))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:  # interrupted: no other code gives the file and its lock back
            opening.add_done_callback(_close_unused)
            raise
        except PartialBusy as e:
            raise PeerRefused(peer, "busy", str(e)) from None

    async def _write(
        self, peer: Site, model: ModelRef, partial: PartialModel, chunks: AsyncIterator[bytes]
    ) -> None:
        told_at = -TELL_EVERY_S
        async for chunk in chunks:
            if self._node.quarantined(peer) or self._node.expects(peer, model.hash) is None:
                partial.discard()  # it holds a place, and bytes of the disk, that others may need
                raise PeerRefused(peer, "too_late", "this site no longer expects it")
            await self._in_thread(partial.write, chunk)
            self._moved("in", peer, model.hash, partial.offset / max(1, model.size_bytes))
            if (now := self._clock()) - told_at >= TELL_EVERY_S:
                told_at = now
                self._inject(events.TransferBegan(peer, model.hash))

    async def _check_header(self, peer: Site, model: ModelRef) -> None:
        path, schema = self._store.path(model.hash), self.schemas.get(model.kind, {})
        try:
            room = header_room_bytes(model.kind, schema, self.verifier.sites)
            header = await self._in_thread(read_safetensors, path, max_header_bytes=room)
            differs = file_differs(model, header.tensors)
            difference = content_difference(
                header.tensors, model.kind, schema, self.verifier.sites, header.metadata
            )
        except ValueError as e:
            self._bad_file(peer, model, "unreadable", str(e))
        except (OSError, LocalError) as e:  # its bytes are those that were promised: this site's own trouble
            self._bad_file(peer, model, "io_error", str(e))
        if differs:
            self._bad_file(peer, model, "manifest_mismatch", differs)
        if difference:
            self._bad_file(peer, model, "schema_mismatch", difference)

    def _forget(self, model: ModelRef) -> None:
        """Remove a file that was not accepted, unless the same model is wanted for another reason."""
        if model.hash not in self._node.kept_models():
            self._store.remove(model.hash)

    def _bad_file(self, peer: Site, model: ModelRef, reason: str, detail: str) -> NoReturn:
        try:
            self._broken(peer, model, reason, detail)
        finally:
            self._forget(model)  # only now: the core has dropped its promise

    def _require_promised(self, peer: Site, model: ModelRef) -> ModelRef:
        if self._node.quarantined(peer):
            raise PeerRefused(peer, "quarantined", "this site accepts nothing from it for now")
        promised = self._node.expects(peer, model.hash)
        if promised is not None and promised.manifest is not None and promised.size_bytes != model.size_bytes:
            detail = f"the stream declares {model.size_bytes} bytes, the manifest {promised.size_bytes}"
            self._broken(peer, model, "manifest_mismatch", detail)
        if promised is None or promised.size_bytes != model.size_bytes:
            raise PeerRefused(peer, "not_offered", "this model was not offered, or not accepted")
        return promised

    def _broken(self, peer: Site, model: ModelRef, reason: str, detail: str) -> NoReturn:
        self._inject(events.ModelBroken(peer, model.hash, reason, detail))
        raise PeerRefused(peer, reason, detail)

    def close(self) -> None:
        """Refuse all pending requests."""
        for future in self._waiting.values():
            with contextlib.suppress(asyncio.InvalidStateError):
                future.cancel()


def _close_unused(opening: asyncio.Future[PartialModel]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
