"""A node: everything a site's daemon decides, as one state machine.

`step(event, now)` returns effects to be carried out in order; their outcomes return as events. The shell
calls `step(Tick(), now)` when `next_deadline()` has come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from gossipseg.core import events, messages
from gossipseg.core.assembly import assemble
from gossipseg.core.context import Call, CallOutcome
from gossipseg.core.effects import Effect, InboxEntry
from gossipseg.core.events import Event
from gossipseg.core.file_router import Sending
from gossipseg.core.gossip.inbox import Reservation
from gossipseg.core.gossip.open_swap import OpenSwap
from gossipseg.core.gossip.swap_requests import SwapRequest, answer
from gossipseg.core.invariants import check, check_rounds, check_swaps
from gossipseg.core.membership.member import Member
from gossipseg.core.params import QuarantineParams
from gossipseg.core.quarantine import PeerRecord
from gossipseg.core.rounds.participant import refusal
from gossipseg.core.rounds.status import RoundsView, view_of
from gossipseg.core.setup import NodeSetup
from gossipseg.core.types import AliveRecord, LeftRecord, ModelRef, PeerInfo, Phase, Site
from gossipseg.core.wellness import Concern

__all__ = [
    "Concern",
    "Member",
    "NodeSetup",
    "NodeState",
    "Reservation",
    "RoundsView",
    "Sending",
    "UnexpectedEvent",
]

STALL_SHARE = 0.5
"""Share of the ping timeout by which a step may miss its deadline. A longer delay means that this site's own
event loop stalled."""


class UnexpectedEvent(Exception):
    """An event that fits no state. Raised only with strict=True: the shell or the core has a bug."""


class Lifecycle(StrEnum):
    """The phases of a node's run."""

    NEW = "new"
    UP = "up"
    GONE = "gone"
    """The node has said goodbye: it still answers, and starts nothing."""


class NodeState:
    """One site's membership, exchange and rounds. See the module docstring."""

    def __init__(self, setup: NodeSetup) -> None:
        self.strict = setup.strict
        self._stage = Lifecycle.NEW
        self._due: float | None = None
        self._missed: float | None = None
        self._stall_s = STALL_SHARE * setup.membership.probe_timeout_s
        parts = assemble(setup)
        self._ctx, self._counts = parts.ctx, parts.counts
        self._membership, self._failure_detector, self._handshake = (
            parts.membership,
            parts.failure_detector,
            parts.handshake,
        )
        self._gossip, self._rounds, self._worker_state = parts.gossip, parts.rounds, parts.worker_state
        self._swaps, self._personal = parts.swaps, parts.personal
        self._ledger, self._enforcer, self._file_router = parts.ledger, parts.enforcer, parts.file_router
        self._wellness = parts.wellness

    # -------------------------------------------------------------- events in, effects out

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return what is to be done, in order. `now` never goes back."""
        ctx = self._ctx
        effects: list[Effect] = []
        ctx.effects = effects
        ctx.now = now
        due = self._due
        if due is not None and now - due > self._stall_s and due != self._missed:
            self._missed = due  # one stall counts once, whatever comes before its tick
            self._failure_detector.stalled()
        self._enforcer.settle()
        handler = HANDLERS.get((self._stage, type(event)))
        if handler is None or not handler(self, event):
            self._unexpected(event)
        self._enforcer.judge()
        if self._rounds is not None and self._stage is Lifecycle.UP:
            self._rounds.settle()
            if self._enforcer.judge():
                self._rounds.settle()
        if self._stage is Lifecycle.UP:
            self._personal.fetching.settle()
        self._due = self._next_deadline()
        return effects

    def next_deadline(self) -> float | None:
        """The latest time to call step(Tick(), now); None: nothing is due."""
        return self._due

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself. For tests."""
        check(self._ctx, self._membership, self._gossip, self._worker_state)
        if self._swaps is not None:
            check_swaps(self._ctx, self._swaps)
        if self._rounds is not None:
            check_rounds(self._ctx, self._rounds, self._worker_state)

    def _next_deadline(self) -> float | None:
        if self._stage is not Lifecycle.UP:
            return None
        due = min(
            self._failure_detector.next_deadline(),
            self._enforcer.next_deadline(),
            self._gossip.next_deadline(),
        )
        suspicions = self._membership.next_deadline()
        if suspicions is not None and suspicions < due:
            due = suspicions
        if self._rounds is not None:
            due = min(due, self._rounds.next_deadline())
        if self._swaps is not None:
            due = min(due, self._swaps.next_deadline())
        due = min(due, self._personal.fetching.next_deadline())
        return None if due == math.inf else due

    def _unexpected(self, event: Event) -> None:
        where = f"{self._stage.value}/{self._worker_state.worker.value}"
        if self.strict:
            raise UnexpectedEvent(f"{self._ctx.site} in {where}: {event}")
        self._ctx.note("dropped_event", None, type(event).__name__, state=where)

    # -------------------------------------------------------------- one handler for each kind of event

    def _start(self, event: events.Start) -> bool:
        self._stage = Lifecycle.UP
        self._wellness.start()
        self._enforcer.start()
        self._membership.self_record.announce(self.incarnation)
        self._failure_detector.start()
        if self._rounds is not None:
            self._rounds.start()
        if self._swaps is not None:
            self._swaps.start()
        return True

    def _tick(self, event: events.Tick) -> bool:
        self._gossip.expire()
        if self._swaps is not None:
            self._swaps.expire()
        self._failure_detector.on_tick()
        return True

    def _incoming(self, event: events.Incoming) -> bool:
        frm, token, body = event.frm, event.token, event.body
        self._wellness.called(frm)
        if frm == self._ctx.site:
            self._ctx.note_seldom("duplicate_site", frm, "another daemon calls under this site's name")
        if isinstance(body, messages.Ping):
            self._failure_detector.on_ping(frm, token, body)
        elif isinstance(body, messages.Offer):
            self._failure_detector.contact(frm, (), None)
            self._gossip.on_offer(frm, token, body)
        elif isinstance(body, messages.IndirectPing):
            self._failure_detector.on_indirect_ping(frm, token, body)
        elif isinstance(body, messages.Sync):
            self._failure_detector.on_sync(frm, token, body)
        elif isinstance(body, messages.Hello):
            self._handshake.on_hello(frm, token, body)
            self._failure_detector.contact(frm, (), body.info)
        elif isinstance(body, messages.Fetch) and body.kind == "personal":
            self._failure_detector.contact(frm, (), None)
            self._personal.serving.answer(frm, token, body)
        elif isinstance(body, messages.Prepare | messages.Fetch | messages.Accept | messages.Commit):
            self._failure_detector.contact(frm, (), None)
            if self._rounds is not None:
                self._rounds.on_request(frm, token, body)
            else:
                self._ctx.respond(token, refusal(body, "other_run"))
        elif isinstance(body, SwapRequest):
            self._failure_detector.contact(frm, (), None)
            answer(self._ctx, self._swaps, frm, token, body)
        else:
            return False
        return True

    def _reply(self, event: events.Reply) -> bool:
        call = self._ctx.calls.pop(event.id, None)
        if call is None:
            return False
        call.rtt_s = event.rtt_s
        self._wellness.answered(call.to)
        call.then(call, event.body)
        return True

    def _request_failed(self, event: events.RequestFailed) -> bool:
        call = self._ctx.calls.pop(event.id, None)
        if call is None:
            return False
        self._wellness.unanswered(call.to, event)
        call.then(call, event)
        return True

    def _transfer(self, event: events.TransferDone | events.TransferFailed) -> bool:
        return self._file_router.ended(event)

    def _began(self, event: events.TransferBegan) -> bool:
        self._file_router.began(event)
        return True

    def _arrived(self, event: events.ModelArrived) -> bool:
        self._file_router.arrived(event)
        return True

    def _broken(self, event: events.ModelBroken) -> bool:
        self._file_router.broken(event)
        return True

    def _worker(self, event: Event) -> bool:
        handled = self._worker_state.handle(event)
        if isinstance(event, events.WorkerReady):
            self._wellness.ready()
            if self._rounds is not None:
                self._rounds.count_from_here()
        return handled

    def _exported(self, event: events.SnapshotExported) -> bool:
        return self._swaps is not None and self._swaps.trade.on_exported(event)

    def _admitted(self, event: events.SnapshotAdmitted) -> bool:
        return self._swaps is not None and self._swaps.trade.on_admitted(event)

    def _applied(self, event: events.SwapApplied) -> bool:
        return self._swaps is not None and self._swaps.decision.on_applied(event)

    def _harmful(self, event: events.HarmfulPeer) -> bool:
        return self._swaps is not None and self._swaps.on_harm(event)

    def _personal_exported(self, event: events.PersonalExported) -> bool:
        return self._personal.serving.on_exported(event)

    def _personal_held(self, event: events.PersonalHeld) -> bool:
        return self._personal.fetching.on_held(event)

    def _pause(self, event: events.Pause) -> bool:
        self._worker_state.pause(event.paused)
        return True

    def _window(self, event: events.TransferWindow) -> bool:
        if self._swaps is not None:
            self._swaps.window(event.open)
        return True

    def _leave(self, event: events.Leave) -> bool:
        self._stage = Lifecycle.GONE
        self._worker_state.leave()
        if self._swaps is not None:
            self._swaps.leave()
        self._personal.fetching.leave()
        if self._rounds is not None:
            self._rounds.leave()
        self._failure_detector.say_goodbye(_ignore)
        self._ctx.note("left")
        return True

    def _nothing_to_do(self, event: Event) -> bool:
        return True

    def _lift(self, event: events.LiftQuarantine) -> bool:
        self._ledger.forget(event.site)
        self._enforcer.lift(event.site)
        if self._swaps is not None:
            self._swaps.memory.forget(event.site)
        self._ctx.persist()
        return True

    def _sites_changed(self, event: events.SitesChanged) -> bool:
        self._ctx.say(listed=event.listed or self._ctx.info.listed)
        for site in self._membership.set_sites(event.sites):
            self._gossip.drop_waiting("no_longer_listed", site)
        self._ledger.keep(event.sites)
        self._enforcer.keep(event.sites)
        if self._swaps is not None:
            self._swaps.keep(event.sites)
        self._personal.fetching.keep(event.sites)
        if self._rounds is not None:
            self._rounds.set_sites(event.sites)
        if event.rekeyed:
            self._personal.serving.rekeyed()
            if self._rounds is not None:
                self._rounds.acceptor.rekeyed()
            self._membership.self_record.announce(self.incarnation + 1)
        self._ctx.persist()
        return True

    # -------------------------------------------------------------- read-only views for the shell

    @property
    def members(self) -> Mapping[Site, Member]:
        """All listed sites but this one."""
        return MappingProxyType(self._membership.members)

    @property
    def quarantine(self) -> Mapping[Site, PeerRecord]:
        """Every peer with a record of offences; times are the core's clock."""
        return MappingProxyType(dict(self._enforcer.quarantine.conducts()))

    @property
    def quarantine_params(self) -> QuarantineParams:
        return self._enforcer.quarantine.params

    def next_quarantine_s(self, site: Site) -> float:
        """Length of the site's next quarantine."""
        return self._enforcer.next_s(site)

    def quarantined(self, site: Site) -> bool:
        """Whether nothing is accepted from the site now."""
        return self._membership.quarantined(site)

    @property
    def info(self) -> PeerInfo:
        """What this site says of itself with every message."""
        return self._ctx.info

    @property
    def phase(self) -> Phase:
        return self._ctx.info.phase

    @property
    def round(self) -> int:
        """Rounds that this site's model has trained."""
        return self._ctx.info.round

    @property
    def last_round(self) -> int | None:
        """The own round at whose end this site finishes, by its present state; None: no end."""
        return self._worker_state.last_round

    @property
    def incarnation(self) -> int:
        return self._membership.self_record.incarnation

    @property
    def own_record(self) -> AliveRecord | LeftRecord:
        """What this site tells of its membership, signed."""
        return self._membership.news.own

    @property
    def inbox(self) -> tuple[InboxEntry, ...]:
        """Models that wait for their visit."""
        return tuple(self._gossip.inbox.waiting)

    @property
    def visiting(self) -> InboxEntry | None:
        """The model that visits in the round now running."""
        return self._gossip.inbox.visiting

    @property
    def reserved(self) -> Reservation | None:
        """The accepted offer whose model has not come yet."""
        return self._gossip.inbox.reserved

    @property
    def swap(self) -> OpenSwap | None:
        """The swap that this site has open."""
        return self._swaps.open if self._swaps is not None else None

    @property
    def swaps_wait(self) -> bool:
        """Whether this site makes no swaps now, because it may not send at this hour."""
        return self._swaps is not None and self._swaps.turns.window_closed

    @property
    def set_aside(self) -> frozenset[Site]:
        """Peers that are kept out of swaps now."""
        return self._swaps.turns.aside.now(self.round) if self._swaps is not None else frozenset()

    @property
    def held_personal(self) -> Mapping[Site, ModelRef]:
        """Other sites' personal models at this one, the oldest first."""
        return MappingProxyType(self._personal.fetching.held)

    @property
    def own_personal(self) -> ModelRef | None:
        """This site's own personal model, as it is served."""
        return self._personal.serving.own

    @property
    def wants_personal(self) -> frozenset[Site]:
        """Sites whose personal models this one is yet to fetch, or its worker yet to take in."""
        return frozenset(self._personal.fetching.wants) | self._personal.fetching.untold

    @property
    def sending(self) -> tuple[Sending, ...]:
        """Models offered or being transferred now."""
        return self._file_router.sending()

    @property
    def self_health(self) -> int:
        """Lifeguard's local health score: 0 is healthy, max_self_health is worst."""
        return self._membership.health.score

    def concerns(self, now: float) -> tuple[Concern, ...]:
        """Reasons to doubt this site's connection to the others, as far as the exchange shows them."""
        return self._wellness.concerns(now)

    @property
    def grace_s(self) -> float:
        """Seconds of grace after the start, or after a change, before silence counts."""
        return self._wellness.grace_s

    def kept_models(self) -> frozenset[str]:
        """Hashes the store must not collect: waiting, visiting, promised or outgoing models, and those of
        rounds."""
        return self._file_router.kept()

    @property
    def round_models(self) -> tuple[ModelRef, ...]:
        """Updates and global models that the rounds need."""
        return self._file_router.of_rounds()

    def count(self, what: str, site: Site | None = None) -> int:
        """Number of models or offences so far, with one site or with all, counted across restarts.

        `what`: `sent`, `received`, `merged`, `refused`, `held`, `kept_out`, `reverted`, `dropped` or
        `offences`; for swaps `mixed`, `copied`, `kept`, `swap_dropped`, `swap_in_doubt` or `swap_lost`.
        """
        return sum(n for (w, s), n in self._counts.items() if w == what and site in (None, s))

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The accepted offer, or the requested file, whose stream may come now; else None."""
        return self._file_router.expects(frm, hash)

    @property
    def rounds_view(self) -> RoundsView | None:
        """The round under way, as far as this site knows; None without a coordinator."""
        if self._rounds is None:
            return None
        return view_of(self._rounds, self._ctx, self._membership)


def _ignore(call: Call, outcome: CallOutcome) -> None:
    """Do nothing: a goodbye needs no answer."""


_Handler = Callable[[NodeState, Any], bool]
_ALWAYS: Mapping[type, _Handler] = {
    events.Incoming: NodeState._incoming,
    events.Reply: NodeState._reply,
    events.RequestFailed: NodeState._request_failed,
    events.TransferDone: NodeState._transfer,
    events.TransferFailed: NodeState._transfer,
    events.TransferBegan: NodeState._began,
    events.ModelArrived: NodeState._arrived,
    events.ModelBroken: NodeState._broken,
    events.WorkerReady: NodeState._worker,
    events.WorkerLost: NodeState._worker,
    events.RoundFinished: NodeState._worker,
    events.Aggregated: NodeState._worker,
    events.AggregationFailed: NodeState._worker,
    events.SnapshotExported: NodeState._exported,
    events.SnapshotAdmitted: NodeState._admitted,
    events.SwapApplied: NodeState._applied,
    events.HarmfulPeer: NodeState._harmful,
    events.PersonalExported: NodeState._personal_exported,
    events.PersonalHeld: NodeState._personal_held,
    events.Pause: NodeState._pause,
    events.TransferWindow: NodeState._window,
    events.SitesChanged: NodeState._sites_changed,
    events.LiftQuarantine: NodeState._lift,
}
HANDLERS: Mapping[tuple[Lifecycle, type], _Handler] = {
    (Lifecycle.NEW, events.Start): NodeState._start,
    **{(Lifecycle.UP, event): handler for event, handler in _ALWAYS.items()},
    (Lifecycle.UP, events.Tick): NodeState._tick,
    (Lifecycle.UP, events.Leave): NodeState._leave,
    **{(Lifecycle.GONE, event): handler for event, handler in _ALWAYS.items()},
    (Lifecycle.GONE, events.Tick): NodeState._nothing_to_do,
    (Lifecycle.GONE, events.Leave): NodeState._nothing_to_do,
}
"""The handler of each event in each phase. An event without an entry is an error in tests and a note in
production."""
