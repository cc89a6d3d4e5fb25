"""What a site is and does: the document behind `gossipctl status`."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document, Part
from gossipseg.wire.documents.rounds import RoundUnderWay


class MemberCounts(Part, frozen=True):
    """How many listed sites (this one left out) are in each state."""

    alive: int = 0
    suspect: int = 0
    dead: int = 0
    left: int = 0
    unseen: int = 0
    refused: int = 0
    """Of those alive: no weights move, because contract, protocol or identity differ."""


class WorkerStatus(Part, frozen=True):
    state: str = "starting"
    """starting | ready | training | aggregating | waiting | restarting | failed | stopped"""
    pid: int | None = None
    restarts: int = 0
    reason: str = ""


class DiscoveryStatus(Part, frozen=True):
    static: bool = True
    mdns: bool = False
    """Announcing and looking on the local link now."""
    foreign: tuple[str, ...] = ()
    """What mDNS showed and was not used: other federations, sites that are not listed."""
    reason: str = ""
    """Why mdns is off although it was asked for."""


class SplitCounts(Part, frozen=True):
    """Cases of this site in each split."""

    training: int = 0
    validation: int = 0
    test: int = 0


class ConcernRow(Part, frozen=True):
    """A reason why this site is not well among the others; docs/admin/troubleshooting.md has each code."""

    code: str = ""
    site: str = ""
    """The other site that it is about; empty: none in particular."""
    text: str = ""
    remedy: str = ""


class StatusDoc(Document, frozen=True):
    """What this site is and does."""

    kind: ClassVar[str] = "status"
    site: str = ""
    id: str = ""
    federation: str = ""
    version: str = ""
    state: str = "ok"
    """ok | degraded | failed"""
    reasons: tuple[str, ...] = ()
    """Why the state is not ok; one sentence each, and what to do."""
    phase: str = "starting"
    """core.types.Phase"""
    activity: str = ""
    """What the worker does now: training, visit, validation, test, or a step of its preparation."""
    fraction: float | None = None
    """Of that activity, 0 to 1."""
    round: int = 0
    """Rounds completed."""
    rounds: int | None = None
    """Those after which the site finishes, in its own count, as things stand: fewer than training.rounds
    where it joined late or was away; null: no end."""
    step: int = 0
    """Of the round that runs."""
    steps_per_round: int = 0
    loss: float | None = None
    dice_val: float | None = None
    dice_test_start: float | None = None
    dice_test: float | None = None
    cases: int = 0
    splits: SplitCounts = SplitCounts()
    splits_from: str = ""
    """Who said which case is in which split: the data list, a file written by hand, the draw, with its file;
    empty until the worker has reported."""
    algorithm: str = ""
    exchange: str = ""
    """How models travel: none | gossip | rounds"""
    committed: int | None = None
    """The newest federation round whose global model is committed; null without a coordinator."""
    coordinator: str = ""
    """Of the round under way."""
    under_way: RoundUnderWay = RoundUnderWay()
    """Under a coordinator: the round, its deadline, who has delivered, who is missing and why."""
    device: str = ""
    members: MemberCounts = MemberCounts()
    sent: int = 0
    received: int = 0
    accepted: int = 0
    """Models taken in: merged, or held to predict with."""
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
    """host:port; with the port that it got where site.yaml leaves that open."""
    worker: WorkerStatus = WorkerStatus()
    disk_free_bytes: int = 0
    certificate_days_left: float | None = None
    discovery: DiscoveryStatus = DiscoveryStatus()
    epsilon: float | None = None
    """Spent so far by differentially private training, at `delta`; null without it."""
    delta: float | None = None
    max_epsilon: float | None = None
    """Training ends before more is spent; null: it is only counted."""
    deployed: str = ""
    """With training.shadow_local: shadow | averaged (the mean of both models' predictions); with an ensemble
    of peers: own | ensemble; else empty."""
    deployed_reason: str = ""
    """Why: both validation Dice, and the number of cases and patients and the standard error, or the peers
    that take part."""
    concerns: tuple[ConcernRow, ...] = ()
    """Those of the reasons that are about the exchange with others, in parts."""
