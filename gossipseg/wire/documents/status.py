"""What a site is and does: the document behind `gossipctl status`."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document, Part
from gossipseg.wire.documents.exchanges import SwapCounts, SwapRow
from gossipseg.wire.documents.rounds import RoundUnderWay


class MemberCounts(Part, frozen=True):
    """Number of listed sites in each state, without this site."""

    alive: int = 0
    suspect: int = 0
    dead: int = 0
    left: int = 0
    unseen: int = 0
    refused: int = 0
    """Alive sites with which no weights move, because contract, protocol or identity differ."""


class WorkerStatus(Part, frozen=True):
    state: str = "starting"
    """starting | ready | training | aggregating | waiting | restarting | failed | stopped"""
    pid: int | None = None
    restarts: int = 0
    reason: str = ""


class DiscoveryStatus(Part, frozen=True):
    static: bool = True
    mdns: bool = False
    """Whether mDNS announces and listens on the local link now."""
    foreign: tuple[str, ...] = ()
    """mDNS announcements that were not used: other federations, sites that are not listed."""
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
    """The other site concerned; empty: none in particular."""
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
    """Share of the activity that is done, 0 to 1."""
    round: int = 0
    """Rounds completed."""
    rounds: int | None = None
    """Rounds after which the site finishes, in its own count, by its present state; null: no end.

    There are fewer than training.rounds where the site joined late or was away.
    """
    step: int = 0
    """Step of the running round."""
    steps_per_round: int = 0
    loss: float | None = None
    dice_val: float | None = None
    dice_test_start: float | None = None
    dice_test: float | None = None
    cases: int = 0
    splits: SplitCounts = SplitCounts()
    splits_from: str = ""
    """The source of the split of cases, with its file: the data list, a file written by hand, or the draw.

    Empty until the worker has reported.
    """
    algorithm: str = ""
    exchange: str = ""
    """How models travel: none | gossip | rounds"""
    committed: int | None = None
    """The newest federation round whose global model is committed; null without a coordinator."""
    coordinator: str = ""
    """Coordinator of the round under way."""
    under_way: RoundUnderWay = RoundUnderWay()
    """Under a coordinator: the round, its deadline, who has delivered, who is missing and why."""
    device: str = ""
    members: MemberCounts = MemberCounts()
    sent: int = 0
    received: int = 0
    accepted: int = 0
    """Models merged, swapped ones among them."""
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
    """host:port, with the actual port where site.yaml leaves it open."""
    worker: WorkerStatus = WorkerStatus()
    disk_free_bytes: int = 0
    certificate_days_left: float | None = None
    discovery: DiscoveryStatus = DiscoveryStatus()
    epsilon: float | None = None
    """ε spent so far by differentially private training, at `delta`; null without it."""
    delta: float | None = None
    max_epsilon: float | None = None
    """Largest ε: training ends before it is exceeded; null: ε is only counted."""
    deployed: str = ""
    """Which model is deployed.

    mix (several together) | personal | shared. Empty without a personal model.
    """
    deployed_reason: str = ""
    """Why that model is deployed: the Dice scores, and their evidence.

    One line: validation Dice alone and deployed, the gain with its standard error and the number of patients,
    and the weight of each model.
    """
    personal_network: str = ""
    """The network of the personal model, where site.yaml gives it one of its own: its name and width."""
    personal_held: tuple[str, ...] = ()
    """Peers whose personal models are here to be chosen from, the oldest first."""
    personal_wanted: tuple[str, ...] = ()
    """Peers whose personal models are still to be fetched, or taken in by the worker."""
    concerns: tuple[ConcernRow, ...] = ()
    """The reasons that concern the exchange with others, in parts."""
    swap: SwapRow = SwapRow()
    """The swap that is open now; its state is empty where none is."""
    swaps: SwapCounts = SwapCounts()
    swaps_wait: str = ""
    """Why this site makes no swaps now, or why the open one waits; empty: neither."""
    set_aside: tuple[str, ...] = ()
    """Peers with which no swaps are made for some rounds, because theirs did harm here."""
