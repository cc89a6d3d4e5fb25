"""The documents that gossipctl prints and the control socket carries. Their fields are a public promise.

What belongs here: frozen values and their JSON form, standard library only.
What must not: grpc, torch, how a document is filled (daemon) or shown (ctl).

A reader ignores fields it does not know and gives missing ones their default, so that daemon and gossipctl
may be of different versions. Fields are only ever added; tests/wire pins the list. Numbers that JSON has
not (NaN, infinities) become null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

SCHEMA = 1
_T = TypeVar("_T")


CLOCK_TOLERANCE_S = 60.0
"""Clocks that differ by more are told to the administrators."""


def clock_text(site: str, ahead_s: float) -> str:
    """By how much a site's clock differs from this one's, in words."""
    size = abs(ahead_s)
    amount = (
        f"{size:.0f} s" if size < 600 else f"{size / 60:.0f} min" if size < 7200 else f"{size / 3600:.1f} h"
    )
    return f"{site}'s clock is {amount} {'ahead of' if ahead_s > 0 else 'behind'} this one's"


class BadDocument(ValueError):
    """The text is no document of a schema and kind that this version reads."""


@dataclass(frozen=True, slots=True)
class Document:
    """Base of all documents."""

    kind: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "kind": self.kind, **_to_plain(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Raises BadDocument for another schema or kind."""
        if raw.get("schema") != SCHEMA:
            raise BadDocument(
                f"document schema {raw.get('schema')!r}: this gossipseg reads schema {SCHEMA} only; "
                "use the gossipctl that came with the daemon"
            )
        if raw.get("kind") != cls.kind:
            raise BadDocument(f"document kind {raw.get('kind')!r}, expected {cls.kind!r}")
        return _from_plain(cls, raw)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises BadDocument."""
        return cls.from_dict(_load(text))


# ---------------------------------------------------------------- status


@dataclass(frozen=True, slots=True)
class MemberCounts:
    """How many listed sites (this one left out) are in each state."""

    alive: int = 0
    suspect: int = 0
    dead: int = 0
    left: int = 0
    unseen: int = 0
    refused: int = 0
    """Of those alive: no weights move, because contract, protocol or identity differ."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    state: str = "starting"
    """starting | ready | training | aggregating | restarting | failed | stopped"""
    pid: int | None = None
    restarts: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DiscoveryStatus:
    static: bool = True
    mdns: bool = False
    """Announcing and looking on the local link now."""
    foreign: tuple[str, ...] = ()
    """What mDNS showed and was not used: other federations, sites that are not listed."""
    reason: str = ""
    """Why mdns is off although it was asked for."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Cases of this site in each split."""

    training: int = 0
    validation: int = 0
    test: int = 0


@dataclass(frozen=True, slots=True)
class StatusDoc(Document):
    """What this site is and does."""

    kind: ClassVar[str] = "status"
    site: str = ""
    id: str = ""
    federation: str = ""
    version: str = ""
    state: str = "ok"
    """ok | degraded | failed"""
    reasons: tuple[str, ...] = ()
    """Why the state is not ok; one sentence each."""
    phase: str = "starting"
    """core.types.Phase"""
    activity: str = ""
    """What the worker does now: training, visit, validation, test, or a step of its preparation."""
    fraction: float | None = None
    """Of that activity, 0 to 1."""
    round: int = 0
    """Rounds completed."""
    rounds: int | None = None
    """Training budget; null: no end."""
    step: int = 0
    """Of the round that runs."""
    steps_per_round: int = 0
    loss: float | None = None
    dice_val: float | None = None
    dice_test_start: float | None = None
    dice_test: float | None = None
    cases: int = 0
    splits: Splits = field(default_factory=Splits, metadata={"part": Splits})
    algorithm: str = ""
    exchange: str = ""
    """How models travel: none | gossip | rounds"""
    committed: int | None = None
    """The newest federation round whose common model is committed; null without a coordinator."""
    coordinator: str = ""
    """Of the round under way."""
    device: str = ""
    members: MemberCounts = field(default_factory=MemberCounts, metadata={"part": MemberCounts})
    sent: int = 0
    received: int = 0
    accepted: int = 0
    """Models merged."""
    refused: int = 0
    """Models refused by the worker's checks."""
    bytes_out: int = 0
    bytes_in: int = 0
    inbox: int = 0
    """Models that wait for their visit."""
    uptime_s: float = 0.0
    self_health: int = 0
    """Lifeguard score, 0 (well) to 7."""
    contract: str = ""
    """Fingerprint; empty until the worker has reported."""
    control: str = ""
    """Path of the control socket."""
    listen: str = ""
    worker: WorkerStatus = field(default_factory=WorkerStatus, metadata={"part": WorkerStatus})
    disk_free_bytes: int = 0
    certificate_days_left: float | None = None
    discovery: DiscoveryStatus = field(default_factory=DiscoveryStatus, metadata={"part": DiscoveryStatus})
    epsilon: float | None = None
    """Spent so far by differentially private training, at `delta`; null without it."""
    delta: float | None = None
    max_epsilon: float | None = None
    """Training ends before more is spent; null: it is only counted."""


# ---------------------------------------------------------------- peers, exchanges, models, events


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A listed site as this one sees it."""

    site: str = ""
    id: str = ""
    address: str = ""
    state: str = "unseen"
    """core.types.MemberState, or `refused`, or `quarantined`"""
    reason: str = ""
    round: int | None = None
    cases: int | None = None
    phase: str = ""
    last_seen_s: float | None = None
    """Seconds ago; null: never."""
    rtt_ms: float | None = None
    sent: int = 0
    received: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    refused: str = ""
    """Why no weights move, with the field that differs; empty if they may."""
    quarantined_s: float | None = None
    """Seconds that nothing is taken from it yet; null: it is in no quarantine."""
    offence: str = ""
    """Reason code of its last offence, while it is in quarantine."""


@dataclass(frozen=True, slots=True)
class PeersDoc(Document):
    kind: ClassVar[str] = "peers"
    peers: tuple[PeerRow, ...] = field(default=(), metadata={"rows": PeerRow})


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """One model offered, one way or the other."""

    t: float = 0.0
    """Wall seconds of its last change."""
    direction: str = ""
    """out | in"""
    peer: str = ""
    hash: str = ""
    bytes: int = 0
    round: int = 0
    """The sender's round; the federation's for a common model."""
    state: str = ""
    """offered | accepted | busy | rejected | waiting | sending | sent | failed | receiving | stored |
    visiting | merged | refused | kept_out | reverted | dropped"""
    reason: str = ""
    fraction: float | None = None
    """Of the transfer, 0 to 1."""
    dice_before: float | None = None
    """Validation Dice of the round before the visit, and of the round after it."""
    dice_after: float | None = None
    holds: str = "model"
    """model (gossip) | update (to a coordinator) | global (a common model)"""
    detail: str = ""
    """More about the reason: of a refused model, the layer, its figure and the bound."""


@dataclass(frozen=True, slots=True)
class ExchangesDoc(Document):
    """Newest first."""

    kind: ClassVar[str] = "exchanges"
    exchanges: tuple[ExchangeRow, ...] = field(default=(), metadata={"rows": ExchangeRow})


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A file in the model store."""

    hash: str = ""
    bytes: int = 0
    kind: str = "other"
    """outgoing | inbox | visiting | update | common | other"""
    frm: str = field(default="", metadata={"json": "from"})
    """The site it came from; this site's own name for its own. In JSON: `from`."""
    round: int | None = None
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelsDoc(Document):
    kind: ClassVar[str] = "models"
    models: tuple[ModelRow, ...] = field(default=(), metadata={"rows": ModelRow})


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A listed site's part in a round, this site included."""

    site: str = ""
    state: str = ""
    """delivered | has_update | training | stored | left_out | …"""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RoundsDoc(Document):
    """The round under the rotating coordinator as this site sees it."""

    kind: ClassVar[str] = "rounds"
    exchange: str = "none"
    """rounds; otherwise there is no coordinator, and all else is empty."""
    round: int = 0
    """The federation round under way, from 1."""
    attempt: int | None = None
    """null: nobody can lead."""
    coordinator: str = ""
    leading: bool = False
    """This site is the coordinator."""
    state: str = ""
    """What this site does for the round: core.rounds_view.RoundsView"""
    reason: str = ""
    quorum: int = 0
    """Sites that must contribute, and store."""
    deadline_s: float | None = None
    """Seconds until sites that have not delivered are left out; null: none is set yet."""
    committed: int = 0
    """The newest round whose common model is committed; 0: only the initial model."""
    committed_hash: str = ""
    contributors: tuple[str, ...] = ()
    """Sites whose updates are in it."""
    absent: tuple[RoundRow, ...] = field(default=(), metadata={"rows": RoundRow})
    """Listed sites that are not in it, and why."""
    sites: tuple[RoundRow, ...] = field(default=(), metadata={"rows": RoundRow})
    """The listed sites in the round under way."""
    similarity_round: int | None = None
    """The round that this site combined last with an algorithm that compares sites (FedSCA)."""
    similarity_sites: tuple[str, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    """How alike the sites' changes were, 0 to 1: a row and a column for each of those sites."""


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """A peer with something against it."""

    site: str = ""
    standing: str = "clear"
    """core.quarantine.Standing: clear (only remembered), watched, quarantined"""
    reason: str = ""
    """Reason code of its last offence."""
    left_s: float | None = None
    """Seconds until its quarantine ends; null: it is in none."""
    offences: int = 0
    """Within the window; none count while it is quarantined."""
    offences_in_all: int = 0
    next_s: float = 0.0
    """How long its next quarantine would last."""


@dataclass(frozen=True, slots=True)
class QuarantineDoc(Document):
    kind: ClassVar[str] = "quarantine"
    limit: int = 0
    """Offences within the window that lead to a quarantine."""
    window_s: float = 0.0
    sites: tuple[QuarantineRow, ...] = field(default=(), metadata={"rows": QuarantineRow})


@dataclass(frozen=True, slots=True)
class EventsDoc(Document):
    """Lines of the event log, oldest first: seq, t, event, and what belongs to that event."""

    kind: ClassVar[str] = "events"
    events: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class DumpDoc(Document):
    """The daemon's recording of its core, for replay."""

    kind: ClassVar[str] = "dump"

    recording: str = ""
    """JSON lines: a head with the state of the core, then a line a step."""
    steps: int = 0
    problem: str = ""
    """Why there are no steps."""


@dataclass(frozen=True, slots=True)
class OkDoc(Document):
    """What became of pause, resume, leave, reload or the lifting of a quarantine."""

    kind: ClassVar[str] = "ok"
    ok: bool = True
    message: str = ""


@dataclass(frozen=True, slots=True)
class WatchDoc(Document):
    """One frame of a watch."""

    kind: ClassVar[str] = "watch"
    status: StatusDoc = field(default_factory=StatusDoc, metadata={"part": StatusDoc})
    peers: PeersDoc = field(default_factory=PeersDoc, metadata={"part": PeersDoc})


KINDS: Mapping[str, type[Document]] = {
    d.kind: d
    for d in (
        StatusDoc,
        PeersDoc,
        ExchangesDoc,
        ModelsDoc,
        RoundsDoc,
        QuarantineDoc,
        EventsDoc,
        DumpDoc,
        OkDoc,
        WatchDoc,
    )
}


def parse(text: str | bytes) -> Document:
    """Any document, by its kind. Raises BadDocument."""
    raw = _load(text)
    kind = KINDS.get(str(raw.get("kind")), Document)
    return kind.from_dict(raw)


def field_listing() -> dict[str, dict[str, str]]:
    """Document kind → dotted JSON field → type: what the promise consists of."""
    return {kind: dict(sorted(_listing(document, ""))) for kind, document in KINDS.items()}


# ---------------------------------------------------------------- plain forms


def _load(text: str | bytes) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadDocument(f"not JSON: {e}") from None
    if not isinstance(raw, dict):
        raise BadDocument("not a JSON object")
    return raw


def _name(f: dataclasses.Field[Any]) -> str:
    return str(f.metadata.get("json", f.name))


def _to_plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if dataclasses.is_dataclass(value):
        return {_name(f): _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(v) for v in value]
    return value


def _from_plain(cls: type[_T], raw: Mapping[str, Any]) -> _T:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if _name(f) not in raw:
            continue
        value = raw[_name(f)]
        if part := f.metadata.get("part"):
            if not isinstance(value, Mapping):
                continue
            value = _from_plain(part, value)
        elif row := f.metadata.get("rows"):
            value = tuple(_from_plain(row, r) for r in value or () if isinstance(r, Mapping))
        elif isinstance(value, list):
            value = _frozen(value)
        values[f.name] = value
    return cls(**values)


def _frozen(value: Any) -> Any:
    """Lists, and those in them, as tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _listing(cls: type[Any], prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for f in dataclasses.fields(cls):
        if part := f.metadata.get("part"):
            found += _listing(part, f"{prefix}{_name(f)}.")
        elif row := f.metadata.get("rows"):
            found += _listing(row, f"{prefix}{_name(f)}[].")
        else:
            found.append((prefix + _name(f), str(f.type)))
    return found
