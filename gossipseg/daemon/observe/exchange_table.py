"""The table of exchanges: one row for each model offered, sent or received, and its outcome.

The table observes the core's events and effects. It decides and counts nothing. The number of rows is
bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from gossipseg.core import effects, events
from gossipseg.core.messages import Fetch, FetchReply, Offer, OfferReply, SwapSnapshot, SwapSnapshotReply
from gossipseg.core.types import ExchangeId, ModelRef, Site
from gossipseg.wire.documents import ExchangeRow

MAX_ROWS = 500
_SNAPSHOT_STATES = {"accept": "accepted", "here": "sent", "wait": "waiting", "reject": "rejected"}
_UNUSED = ("accepted", "receiving", "stored")
"""States of a snapshot that came, or was to come, and that nothing has been done with."""


@dataclass(slots=True)
class ExchangeTable:
    """Rows by (direction, peer, hash); `clock` gives wall seconds."""

    clock: Callable[[], float]
    rows: OrderedDict[tuple[str, Site, str], ExchangeRow] = field(default_factory=OrderedDict)
    _offers: dict[int, tuple[Site, ModelRef]] = field(default_factory=dict)
    _fetches: dict[int, Site] = field(default_factory=dict)
    _snapshots: OrderedDict[ExchangeId, tuple[Site, str]] = field(default_factory=OrderedDict)
    """The snapshot that the partner has announced in each swap: its maker and its hash."""
    _asked: dict[int, tuple[Site, ModelRef]] = field(default_factory=dict)
    _visitors: OrderedDict[str, Site] = field(default_factory=OrderedDict)
    _dice_val: float | None = None

    def effect(self, effect: effects.Effect) -> None:
        """Update the rows for an effect that the core wants done."""
        match effect:
            case effects.Request(id=id_, to=to, body=Offer(model=model)):
                self._offers[id_] = (to, model)
                self._put("out", to, model, "offered")
            case effects.Request(id=id_, to=to, body=SwapSnapshot(model=model)):
                self._offers[id_] = (to, model)
                self._put("out", to, model, "offered")
            case effects.Request(id=id_, to=to, body=Fetch(hash=hash_)) if hash_:  # "" is only a question
                self._fetches[id_] = to
            case effects.StartTransfer(id=id_, to=to, model=model):
                self._offers[id_] = (to, model)
                self._put("out", to, model, "sending")
            case effects.Respond(token=token, body=OfferReply() as reply) if token in self._asked:
                self._answered(*self._asked.pop(token), reply)
            case effects.Respond(token=token, body=SwapSnapshotReply() as reply) if token in self._asked:
                self._snapshot_answered(*self._asked.pop(token), reply)
            case effects.Note(event="swap_applied", site=str(site), reason=part, detail=detail) if (
                part != "keep"
            ):
                self._set("in", site, str(detail.get("hash", "")), "merged")
            case effects.Note(
                event="swap_dropped" | "swap_in_doubt" | "swap_lost", reason=reason, detail=detail
            ):
                self._swap_over(ExchangeId(str(detail["asker"]), int(detail["number"])), reason)
            case effects.StartRound(visit=effects.InboxEntry() as entry):
                self._visitors[entry.model.hash] = entry.frm
                while len(self._visitors) > MAX_ROWS:
                    self._visitors.popitem(last=False)
                self._set("in", entry.frm, entry.model.hash, "visiting", dice_before=self._dice_val)
            case effects.Note(event="model_dropped", site=str(site), reason=reason, detail=detail):
                self._set("in", site, str(detail.get("hash", "")), "dropped", reason)

    def event(self, event: events.Event) -> None:
        """Update the rows for an event."""
        match event:
            case events.Incoming(frm=frm, token=token, body=Offer(model=model)):
                self._asked[token] = (frm, model)
            case events.Incoming(frm=frm, token=token, body=SwapSnapshot(swap=swap, model=model)):
                self._asked[token] = (frm, model)
                self._snapshots[swap] = (frm, model.hash)
                while len(self._snapshots) > MAX_ROWS:
                    self._snapshots.popitem(last=False)
            case events.Reply(id=id_, body=SwapSnapshotReply() as reply) if id_ in self._offers:
                site, model = self._offers.pop(id_)
                self._set("out", site, model.hash, _SNAPSHOT_STATES[reply.verdict], reply.reason)
            case events.SnapshotAdmitted(swap=swap, reason=reason, detail=detail) if reason:
                if (snapshot := self._snapshots.get(swap)) is not None:
                    self._set("in", *snapshot, "refused", reason, detail=detail)
            case events.Reply(id=id_, body=OfferReply() as reply) if id_ in self._offers:
                site, model = self._offers.pop(id_)
                state = {"accept": "accepted", "busy": "busy", "reject": "rejected"}[reply.verdict]
                self._set("out", site, model.hash, state, reply.reason)
            case events.Reply(id=id_, body=FetchReply() as reply) if id_ in self._fetches:
                site = self._fetches.pop(id_)
                if reply.verdict == "accept" and reply.model is not None:
                    self._put("in", site, reply.model, "accepted")
            case events.RequestFailed(id=id_) if id_ in self._fetches:
                del self._fetches[id_]
            case events.RequestFailed(id=id_, reason=reason) if id_ in self._offers:
                site, model = self._offers.pop(id_)
                self._set("out", site, model.hash, "failed", reason)
            case events.TransferDone(id=id_) if id_ in self._offers:
                site, model = self._offers.pop(id_)
                self._set("out", site, model.hash, "sent", fraction=1.0)
            case events.TransferFailed(id=id_, reason=reason) if id_ in self._offers:
                site, model = self._offers.pop(id_)
                self._set("out", site, model.hash, "failed", reason)
            case events.ModelArrived(frm=frm, model=model):
                self._set("in", frm, model.hash, "stored", fraction=1.0)
            case events.ModelBroken(frm=frm, hash=hash_, reason=reason, detail=detail):
                self._set("in", frm, hash_, "refused", reason, detail=detail)
            case events.RoundFinished():
                self._round(event)
            case events.WorkerReady(dice_val=dice_val):
                self._dice_val = dice_val if dice_val is not None else self._dice_val
            case events.WorkerLost():
                self._visit_cut_off()

    def moved(self, direction: str, site: Site, hash_: str, fraction: float) -> None:
        """Record the progress of a transfer."""
        self._set(direction, site, hash_, "receiving" if direction == "in" else "sending", fraction=fraction)

    def waits(self, site: Site, hash_: str, reason: str) -> None:
        """Record that an outgoing transfer has not begun yet."""
        self._set("out", site, hash_, "waiting", reason)

    @property
    def open(self) -> int:
        """Offers, fetches and transfers, in either direction, whose outcome is not known yet."""
        return len(self._offers) + len(self._fetches) + len(self._asked)

    def recent(self, limit: int) -> list[ExchangeRow]:
        """The newest rows, newest first."""
        return list(reversed(self.rows.values()))[: limit or MAX_ROWS]

    def _answered(self, frm: Site, model: ModelRef, reply: OfferReply) -> None:
        if reply.verdict == "accept":
            self._put("in", frm, model, "accepted")
        elif reply.reason not in ("duplicate",):
            self._put("in", frm, model, "busy" if reply.verdict == "busy" else "rejected", reply.reason)

    def _snapshot_answered(self, frm: Site, model: ModelRef, reply: SwapSnapshotReply) -> None:
        """Add a row for a partner's snapshot, unless it is announced once more."""
        known = self.rows.get(("in", frm, model.hash))
        if reply.verdict == "accept" and (known is None or known.state not in _UNUSED):
            self._put("in", frm, model, "accepted")
        elif reply.verdict == "reject" and known is None:
            self._put("in", frm, model, "rejected", reply.reason)

    def _swap_over(self, swap: ExchangeId, reason: str) -> None:
        """Drop the partner's snapshot of a swap that came to nothing."""
        site, hash_ = self._snapshots.pop(swap, ("", ""))
        row = self.rows.get(("in", site, hash_))
        if row is not None and row.state in _UNUSED:
            self._set("in", site, hash_, "dropped", reason)

    def _round(self, done: events.RoundFinished) -> None:
        if (visit := done.visit) is not None and (site := self._visitors.get(visit.hash)) is not None:
            more = {"dice_after": done.dice_val, "detail": visit.detail}
            self._set("in", site, visit.hash, visit.outcome, visit.reason, **more)
        if done.reverted is not None and (site := self._visitors.get(done.reverted)) is not None:
            self._set("in", site, done.reverted, "reverted", "validation Dice fell", dice_after=done.dice_val)
        self._dice_val = done.dice_val if done.dice_val is not None else self._dice_val

    def _visit_cut_off(self) -> None:
        """Reset the visitor to waiting: the worker died during its visit."""
        for direction, peer, hash_ in [key for key, row in self.rows.items() if row.state == "visiting"]:
            self._set(direction, peer, hash_, "stored")

    def _put(self, direction: str, peer: Site, model: ModelRef, state: str, reason: str = "") -> None:
        key = (direction, peer, model.hash)
        self.rows[key] = ExchangeRow(
            t=self.clock(),
            direction=direction,
            peer=peer,
            hash=model.hash,
            bytes=model.size_bytes,
            round=model.round,
            state=state,
            reason=reason,
            fraction=0.0,
            dice_before=None,
            dice_after=None,
            holds=model.kind,
        )
        self.rows.move_to_end(key)
        while len(self.rows) > MAX_ROWS:
            self.rows.popitem(last=False)

    def _set(
        self, direction: str, peer: Site, hash_: str, state: str, reason: str = "", **more: object
    ) -> None:
        key = (direction, peer, hash_)
        if (row := self.rows.get(key)) is not None:
            more = {"detail": "", **more}  # that of an earlier state says nothing of this one
            self.rows[key] = msgspec.structs.replace(row, state=state, reason=reason, **more)
