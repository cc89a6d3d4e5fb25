"""One node on the bench: events in by hand, effects out by type."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.node import NodeSetup, NodeState
from gossipseg.core.params import GossipParams, MembershipParams, TrustParams
from gossipseg.core.types import (
    AliveRecord,
    LeftRecord,
    ModelRef,
    PeerInfo,
    Phase,
    Record,
    Site,
    SuspectRecord,
    fingerprint,
    payload,
)

OPEN = (("federation", '"f"'), ("network.signature", '""'), ("training.lr", "0.003"))
SIGNED = (("federation", '"f"'), ("network.signature", '"net"'), ("training.lr", "0.003"))
PRINT = fingerprint(SIGNED)
TRAINING = PeerInfo(round=5, steps=50, cases=10, phase=Phase.TRAINING, contract=PRINT)
E = TypeVar("E")


def signature(site: Site, record: Record) -> bytes:
    return hashlib.sha256(site.encode() + payload(record)).digest()


def alive(site: Site, incarnation: int = 1, nonce: int = 7, cases: int = 10) -> AliveRecord:
    return AliveRecord(site, nonce, incarnation, f"{site}:1", cases)


def left(site: Site, incarnation: int = 1, nonce: int = 7) -> LeftRecord:
    return LeftRecord(site, nonce, incarnation)


def suspect(site: Site, accuser: Site, incarnation: int = 1) -> SuspectRecord:
    return SuspectRecord(site, incarnation, accuser)


def model(name: str = "a", round: int = 5, steps: int = 50, size: int = 1000) -> ModelRef:
    return ModelRef(hashlib.sha256(name.encode()).hexdigest(), size, round, steps, 10)


def bare(value: Any) -> Any:
    """The same value without the manifests in it, for comparisons that are not about them."""
    if isinstance(value, ModelRef):
        return replace(value, manifest=None)
    if isinstance(value, tuple | list):
        return type(value)(bare(v) for v in value)
    if isinstance(value, fx.Note) or not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: bare(getattr(value, f.name)) for f in fields(value)})


class Rig:
    """A strict node called `me` among the given others; checks its invariants after every step."""

    def __init__(self, others: Iterable[Site] = ("b", "c", "d"), *, seed: int = 0, **changes: Any) -> None:
        self.now, self._token = 100.0, 0
        sites: Mapping[Site, str] = {s: f"{s}:7443" for s in others}
        given: dict[str, Any] = {
            "address": "me:7443",
            "sites": sites,
            "federation": "f",
            "contract": OPEN,
            "membership": MembershipParams(),
            "gossip": GossipParams(exchange="push"),
            "exchange": "gossip",
            "rounds": None,
            "rng": random.Random(seed),
            "sign": lambda data: hashlib.sha256(b"me" + data).digest(),
            "strict": True,
            "trust": TrustParams(require_manifests=False),
        }
        self.node = NodeState(NodeSetup("me", **{**given, **changes}))
        self.out: list[fx.Effect] = []

    # ------------------------------------------------------------ events

    def do(self, event: ev.Event, at: float | None = None) -> list[fx.Effect]:
        if at is not None:
            self.now = at
        self.out = self.node.step(event, self.now)
        self.node.check_invariants()
        return self.out

    def start(self) -> Rig:
        self.do(ev.Start())
        return self

    def until(self, t: float) -> list[fx.Effect]:
        """Play the ticks up to t; requests are left unanswered. Returns all effects."""
        effects: list[fx.Effect] = []
        while (due := self.node.next_deadline()) is not None and due <= t:
            effects += self.do(ev.Tick(), at=max(due, self.now))
        self.now = max(self.now, t)
        return effects

    def hears(self, frm: Site, *records: Record, info: PeerInfo = TRAINING) -> list[fx.Effect]:
        """A ping from `frm` with these records."""
        return self.asks(frm, ms.Ping(records, info))

    def asks(self, frm: Site, body: ms.Request) -> list[fx.Effect]:
        self._token += 1
        return self.do(ev.Incoming(frm, self._token, body))

    def answer(self, request: fx.Request, body: ms.Reply, rtt_s: float = 0.02) -> list[fx.Effect]:
        return self.do(ev.Reply(request.id, body, rtt_s))

    def fail(self, request: fx.Request, reason: str = "timeout", detail: str = "") -> list[fx.Effect]:
        return self.do(ev.RequestFailed(request.id, reason, detail))

    def meet(self, *sites: Site, info: PeerInfo = TRAINING) -> Rig:
        """These sites are alive, greeted and agree."""
        for site in sites:
            self.asks(site, ms.Hello(1, 1, "f", SIGNED if info.contract else OPEN, info))
            for sync in self.requests(ms.Sync):
                self.fail(sync)
            self.hears(site, alive(site), info=info)
        return self

    def ready(self, round: int = 5, steps: int = 50, cases: int = 10, **kw: Any) -> list[fx.Effect]:
        return self.do(ev.WorkerReady(round, steps, cases, SIGNED, **kw))

    def round_done(self, export: ModelRef | None = None, **kw: Any) -> list[fx.Effect]:
        round = self.node.round + 1
        return self.do(ev.RoundFinished(round, round * 10, 0.5, export, **kw))

    # ------------------------------------------------------------ effects

    def of(self, kind: type[E]) -> list[E]:
        return [e for e in self.out if isinstance(e, kind)]

    def requests(self, body: type, to: Site | None = None) -> list[fx.Request]:
        return [r for r in self.of(fx.Request) if isinstance(r.body, body) and to in (None, r.to)]

    def request(self, body: type, to: Site | None = None) -> fx.Request:
        found = self.requests(body, to)
        assert len(found) == 1, f"{len(found)} requests of {body.__name__} in {self.out}"
        return found[0]

    def reply(self) -> Any:
        responses = self.of(fx.Respond)
        assert len(responses) == 1, self.out
        return responses[0].body

    def notes(self, event: str) -> list[fx.Note]:
        return [n for n in self.of(fx.Note) if n.event == event]

    def state(self, site: Site) -> str:
        return self.node.members[site].state.value


def phase(of: Phase) -> PeerInfo:
    return replace(TRAINING, phase=of)
