"""A node: everything a site's daemon decides, as one state machine.

What belongs here: the dispatch of events to the parts (membership, probing, greeting, gossip, rounds,
training) and the views the shell reads. What must not: I/O, clocks, threads, randomness of its own, logging.

`step(event, now)` returns effects to be carried out in order; what comes of them returns as events.
The shell calls `step(Tick(), now)` when `next_deadline()` has come.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from gossipseg.core import events, messages
from gossipseg.core.answers import refusal
from gossipseg.core.context import Call, Context, Outcome
from gossipseg.core.effects import Effect, InboxEntry, Persist, Snapshot
from gossipseg.core.events import Event
from gossipseg.core.gossip import Gossip
from gossipseg.core.greeting import Greeter
from gossipseg.core.inbox import Inbox, Reservation
from gossipseg.core.invariants import check, check_rounds
from gossipseg.core.manifests import Notary
from gossipseg.core.member import Member
from gossipseg.core.membership import Membership
from gossipseg.core.params import GossipParams, MembershipParams, QuarantineParams, RoundsParams, TrustParams
from gossipseg.core.probing import Prober
from gossipseg.core.quarantine import Conduct, Quarantine
from gossipseg.core.rounds import Rounds
from gossipseg.core.rounds_view import RoundsView
from gossipseg.core.training import Training
from gossipseg.core.types import PROTOCOL_MAX, PROTOCOL_MIN, ModelRef, PeerInfo, Phase, Sign, Site

__all__ = ["Member", "NodeState", "Reservation", "RoundsView", "Sending", "UnexpectedEvent"]

STALL_SHARE = 0.5
"""A step this share of the ping timeout behind its deadline means that this site's own loop stood still."""


class UnexpectedEvent(Exception):
    """An event that fits no state (raised only with strict=True: a bug of the shell or of the core)."""


class Stage(StrEnum):
    """Where a node is in its life."""

    NEW = "new"
    UP = "up"
    GONE = "gone"
    """It has said goodbye: it still answers, and starts nothing."""


@dataclass(frozen=True, slots=True)
class Sending:
    """A model on its way out: looking for a receiver, offered, or being transferred."""

    to: Site
    model: ModelRef
    transferring: bool


class NodeState:
    """One site's membership, exchange and rounds. See the module docstring."""

    def __init__(
        self,
        site: Site,
        *,
        address: str,
        sites: Mapping[Site, str],
        federation: str,
        contract: tuple[tuple[str, str], ...],
        membership: MembershipParams,
        gossip: GossipParams,
        exchange: Literal["none", "gossip", "rounds"],
        rounds: int | None,
        rng: random.Random,
        sign: Sign,
        rounds_params: RoundsParams | None = None,
        every_rounds: int = 1,
        finetune_rounds: int = 0,
        max_model_bytes: int = 2 << 30,
        snapshot: Snapshot | None = None,
        protocol: tuple[int, int] = (PROTOCOL_MIN, PROTOCOL_MAX),
        trust: TrustParams | None = None,
        quarantine: QuarantineParams | None = None,
        sequence_floor: int = 0,
        strict: bool = False,
    ) -> None:
        """`sites`: name → listed address of the others. `strict`: an event that fits no state raises.

        `rounds` is the training budget; `every_rounds` and `finetune_rounds` are of its own rounds, and like
        `rounds_params` only for `exchange="rounds"`. `sequence_floor`: no manifest gets a number below it;
        taken from a clock, it keeps a site that has lost its disk from repeating itself.
        """
        then = snapshot or Snapshot()
        self.strict = strict
        self._stage = Stage.NEW
        self._due: float | None = None
        self._missed: float | None = None
        self._stall_s = STALL_SHARE * membership.probe_timeout_s
        self._counts: Counter[tuple[str, Site]] = Counter({(w, s): n for w, s, n in then.counters})
        self._ctx = ctx = Context(
            site, federation=federation, contract=contract, protocol=protocol, rng=rng, sign=sign
        )
        ctx.persist = self._persist
        self._notary = Notary(
            ctx,
            require=(trust or TrustParams()).require_manifests,
            sequence=then.sequence,
            floor=sequence_floor,
            seen=(s for s in then.seen if s.maker in sites),
        )
        conduct = quarantine or QuarantineParams()
        self._quarantine = Quarantine(conduct)
        self._conduct_then = then.conduct
        self._membership = Membership(
            ctx,
            membership,
            sites=sites,
            address=address,
            incarnation=then.incarnation + 1,
            on_change=self._on_change,
        )
        self._greeter = Greeter(ctx, self._membership, self._on_greeted)
        self._prober = Prober(ctx, membership, self._membership, self._greeter)
        self._gossip = Gossip(
            ctx,
            gossip,
            self._membership,
            self._greeter,
            exchanges=exchange == "gossip",
            rounds=rounds,
            max_model_bytes=max_model_bytes,
            # peers.yaml may have changed while this site was down: no removed site's model visits.
            inbox=Inbox(gossip, tuple(e for e in then.inbox if e.frm in sites)),
            counts=self._counts,
            notary=self._notary,
        )
        self._rounds: Rounds | None = None
        if exchange == "rounds":
            self._rounds = Rounds(
                ctx,
                rounds_params or RoundsParams(),
                self._membership,
                budget=rounds,
                every_rounds=every_rounds,
                finetune_rounds=finetune_rounds,
                max_model_bytes=max_model_bytes,
                record=then.rounds,
                notary=self._notary,
            )
        self._training = Training(
            ctx,
            self._gossip,
            self._membership,
            rounds=rounds,
            snapshot=then,
            coordinated=self._rounds,
            dice_run=conduct.dice_run if conduct.dice_offence else None,
        )
        if self._rounds is not None:
            self._rounds.worker = self._training

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
            self._prober.stalled()
        if now >= self._quarantine.next_deadline():
            self._end_quarantines()
        handler = HANDLERS.get((self._stage, type(event)))
        if handler is None or not handler(self, event):
            self._unexpected(event)
        self._judge()
        if self._rounds is not None and self._stage is Stage.UP:
            self._rounds.settle()
            if self._judge():
                self._rounds.settle()
        self._due = self._next_deadline()
        return effects

    def next_deadline(self) -> float | None:
        """When to call step(Tick(), now) at the latest; None: nothing is due."""
        return self._due

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself. For tests."""
        check(self._ctx, self._membership, self._gossip, self._training)
        if self._rounds is not None:
            check_rounds(self._ctx, self._rounds, self._training)

    def _next_deadline(self) -> float | None:
        if self._stage is not Stage.UP:
            return None
        due = min(
            self._prober.next_deadline(), self._quarantine.next_deadline(), self._gossip.next_deadline()
        )
        suspicions = self._membership.next_deadline()
        if suspicions is not None and suspicions < due:
            due = suspicions
        if self._rounds is not None:
            due = min(due, self._rounds.next_deadline())
        return None if due == math.inf else due

    def _unexpected(self, event: Event) -> None:
        where = f"{self._stage.value}/{self._training.worker.value}"
        if self.strict:
            raise UnexpectedEvent(f"{self._ctx.site} in {where}: {event}")
        self._ctx.note("dropped_event", None, type(event).__name__, state=where)

    def _persist(self) -> None:
        ctx = self._ctx
        counters = tuple((what, site, n) for (what, site), n in sorted(self._counts.items()))
        snapshot = Snapshot(
            incarnation=self._membership.incarnation,
            round=ctx.info.round,
            steps=ctx.info.steps,
            inbox=self._gossip.inbox.entries,
            paused=self._training.paused,
            counters=counters,
            rounds=self._rounds.acceptor.record if self._rounds is not None else None,
            sequence=self._notary.sequence,
            seen=tuple(self._notary.seen[key] for key in sorted(self._notary.seen)),
            conduct=self._conduct_then or self._quarantine.records(ctx.now),
        )
        ctx.effects.append(Persist(snapshot))

    # -------------------------------------------------------------- quarantine

    def _judge(self) -> bool:
        """Count the offences of this step; True: there were some."""
        ctx = self._ctx
        offences, ctx.offences = ctx.offences, []
        for site, reason in offences:
            if site not in self._membership.members:
                continue
            self._counts["offences", site] += 1
            ctx.note("offence", site, reason)
            if self._quarantine.offend(site, reason, ctx.now):
                self._shut_out(site)
                until = self._quarantine.until(site)
                ctx.note("peer_quarantined", site, reason, seconds=(until or ctx.now) - ctx.now)
        if offences:
            ctx.persist()
        return bool(offences)

    def _shut_out(self, site: Site) -> None:
        member = self._membership.members[site]
        member.quarantined_until = self._quarantine.until(site)
        member.offence = self._quarantine.reason(site)
        self._gossip.shun(site)
        if self._rounds is not None:
            self._rounds.shun(site)
        self._on_change(member, False)

    def _let_in(self, site: Site) -> None:
        member = self._membership.members.get(site)
        if member is not None:
            member.quarantined_until, member.offence = None, ""
            self._on_change(member, False)

    def _end_quarantines(self) -> None:
        for site in self._quarantine.settle(self._ctx.now):
            self._let_in(site)
            self._ctx.note("quarantine_over", site)

    def _on_greeted(self, member: Member) -> None:
        self._on_change(member, False)

    def _on_change(self, member: Member, ended: bool) -> None:
        self._gossip.on_change(member, ended)
        if self._rounds is not None:
            self._rounds.on_change(member, ended)

    # -------------------------------------------------------------- one handler for each kind of event

    def _start(self, event: events.Start) -> bool:
        self._stage = Stage.UP
        self._quarantine.restore(self._conduct_then, self._ctx.now)
        self._conduct_then = ()
        self._quarantine.forget(self._membership.members)
        for site in self._membership.members:
            if self._quarantine.until(site) is not None:
                self._shut_out(site)
        self._membership.announce(self._membership.incarnation)
        self._prober.start()
        if self._rounds is not None:
            self._rounds.start()
        return True

    def _tick(self, event: events.Tick) -> bool:
        self._gossip.expire()
        self._prober.on_tick()
        return True

    def _no_tick(self, event: events.Tick) -> bool:
        return True

    def _incoming(self, event: events.Incoming) -> bool:
        frm, token, body = event.frm, event.token, event.body
        if frm == self._ctx.site:
            self._ctx.note_seldom("duplicate_site", frm, "another daemon calls under this site's name")
        if isinstance(body, messages.Ping):
            self._prober.on_ping(frm, token, body)
        elif isinstance(body, messages.Offer):
            self._prober.contact(frm, (), None)
            self._gossip.on_offer(frm, token, body)
        elif isinstance(body, messages.IndirectPing):
            self._prober.on_indirect_ping(frm, token, body)
        elif isinstance(body, messages.Sync):
            self._prober.on_sync(frm, token, body)
        elif isinstance(body, messages.Hello):
            self._greeter.on_hello(frm, token, body)
            self._prober.contact(frm, (), body.info)
        elif isinstance(body, messages.Prepare | messages.Fetch | messages.Accept | messages.Commit):
            self._prober.contact(frm, (), None)
            if self._rounds is not None:
                self._rounds.on_request(frm, token, body)
            else:
                self._ctx.respond(token, refusal(body, "other_run"))
        else:
            return False
        return True

    def _reply(self, event: events.Reply) -> bool:
        call = self._ctx.calls.pop(event.id, None)
        if call is None:
            return False
        call.rtt_s = event.rtt_s
        call.then(call, event.body)
        return True

    def _request_failed(self, event: events.RequestFailed) -> bool:
        call = self._ctx.calls.pop(event.id, None)
        if call is None:
            return False
        call.then(call, event)
        return True

    def _transfer(self, event: events.TransferDone | events.TransferFailed) -> bool:
        if self._rounds is not None and self._rounds.on_transfer(event):
            return True
        return self._gossip.on_transfer(event)

    def _began(self, event: events.TransferBegan) -> bool:
        if self._rounds is None or not self._rounds.fetcher.began(event.frm, event.hash):
            self._gossip.inbox.began(event.frm, event.hash, self._ctx.now)
        return True

    def _arrived(self, event: events.ModelArrived) -> bool:
        if self._rounds is None or not self._rounds.fetcher.arrived(event.frm, event.model):
            self._gossip.on_arrived(event)
        return True

    def _broken(self, event: events.ModelBroken) -> bool:
        if self._rounds is None or not self._rounds.fetcher.broken(event):
            self._gossip.on_broken(event)
        return True

    def _worker(self, event: Event) -> bool:
        return self._training.handle(event)

    def _pause(self, event: events.Pause) -> bool:
        self._training.pause(event.paused)
        return True

    def _leave(self, event: events.Leave) -> bool:
        self._stage = Stage.GONE
        self._training.leave()
        if self._rounds is not None:
            self._rounds.leave()
        self._prober.say_goodbye(_ignore)
        self._ctx.note("left")
        return True

    def _leave_again(self, event: events.Leave) -> bool:
        return True

    def _lift(self, event: events.LiftQuarantine) -> bool:
        lifted = self._quarantine.lift(event.site)
        self._notary.forget(event.site)
        self._let_in(event.site)
        self._ctx.note("quarantine_lifted", event.site, "" if lifted else "was_in_none")
        self._ctx.persist()
        return True

    def _sites_changed(self, event: events.SitesChanged) -> bool:
        for site in self._membership.set_sites(event.sites):
            self._gossip.drop_waiting("no_longer_listed", site)
        self._notary.keep(event.sites)
        self._quarantine.forget(event.sites)
        if self._rounds is not None:
            self._rounds.set_sites(event.sites)
        if event.rekeyed:
            if self._rounds is not None:
                self._rounds.acceptor.rekeyed()
            self._membership.announce(self.incarnation + 1)
        self._ctx.persist()
        return True

    # -------------------------------------------------------------- read-only views for the shell

    @property
    def members(self) -> Mapping[Site, Member]:
        """All listed sites but this one."""
        return MappingProxyType(self._membership.members)

    @property
    def quarantine(self) -> Mapping[Site, Conduct]:
        """Every peer with something against it; times are the core's clock."""
        return MappingProxyType(dict(self._quarantine.conducts()))

    @property
    def quarantine_params(self) -> QuarantineParams:
        return self._quarantine.params

    def next_quarantine_s(self, site: Site) -> float:
        """How long its next one would last."""
        conduct = self._quarantine.conducts().get(site)
        return self._quarantine.sentence_s(conduct.steps if conduct is not None else 0)

    def quarantined(self, site: Site) -> bool:
        """Nothing is taken from it now."""
        member = self._membership.members.get(site)
        return member is not None and member.quarantined_until is not None

    @property
    def info(self) -> PeerInfo:
        """What this site says of itself with every message."""
        return self._ctx.info

    @property
    def phase(self) -> Phase:
        return self._ctx.info.phase

    @property
    def round(self) -> int:
        """Rounds behind this site's model."""
        return self._ctx.info.round

    @property
    def incarnation(self) -> int:
        return self._membership.incarnation

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
    def sending(self) -> tuple[Sending, ...]:
        """Models offered or being transferred now."""
        sending = [Sending(o.to, o.model, o.transferring) for o in self._gossip.outgoing]
        if self._rounds is not None:
            sending += [Sending(t.to, t.model, True) for t in self._rounds.serving.transfers.values()]
        return tuple(sending)

    @property
    def self_health(self) -> int:
        """Lifeguard's local health score: 0 is healthy, max_self_health is worst."""
        return self._membership.health.score

    def kept_models(self) -> frozenset[str]:
        """Hashes the store must not collect: waiting, visiting, promised, on their way out; of the rounds."""
        inbox = self._gossip.inbox
        models = [e.model for e in inbox.entries] + [o.model for o in self._gossip.outgoing]
        if inbox.reserved is not None:
            models.append(inbox.reserved.model)
        return frozenset(m.hash for m in (*models, *self.round_models))

    @property
    def round_models(self) -> tuple[ModelRef, ...]:
        """Updates and common models that the rounds need."""
        return tuple(self._rounds.kept_models()) if self._rounds is not None else ()

    def count(self, what: str, site: Site | None = None) -> int:
        """Models `sent`, `received`, `merged`, `refused`, `kept_out`, `reverted` or `dropped` so far,
        with one site or with all; counted across restarts."""
        return sum(n for (w, s), n in self._counts.items() if w == what and site in (None, s))

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The accepted offer, or the fetched file, whose stream may come now, or None."""
        if self.quarantined(frm):
            return None
        if self._rounds is not None and (model := self._rounds.expects(frm, hash)) is not None:
            return model
        return self._gossip.inbox.expected(frm, hash)

    @property
    def rounds_view(self) -> RoundsView | None:
        """The round under way, as far as this site knows; None without a coordinator."""
        return self._rounds.view() if self._rounds is not None else None


def _ignore(call: Call, outcome: Outcome) -> None:
    """A farewell needs no answer."""


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
    events.Pause: NodeState._pause,
    events.SitesChanged: NodeState._sites_changed,
    events.LiftQuarantine: NodeState._lift,
}
HANDLERS: Mapping[tuple[Stage, type], _Handler] = {
    (Stage.NEW, events.Start): NodeState._start,
    **{(Stage.UP, event): handler for event, handler in _ALWAYS.items()},
    (Stage.UP, events.Tick): NodeState._tick,
    (Stage.UP, events.Leave): NodeState._leave,
    **{(Stage.GONE, event): handler for event, handler in _ALWAYS.items()},
    (Stage.GONE, events.Tick): NodeState._no_tick,
    (Stage.GONE, events.Leave): NodeState._leave_again,
}
"""What may happen when. An event without an entry is an error in tests and a note in production."""
