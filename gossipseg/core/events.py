"""What can happen to a node. The shell turns the outside world into these events; the core sees nothing
else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gossipseg.core import messages
from gossipseg.core.types import ExchangeId, ModelRef, Site


@dataclass(frozen=True, slots=True)
class Start:
    """The daemon has started: the first event of its run."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline returned by next_deadline() has come."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A listed, authenticated site asks; answer with effects.Respond(token). Its records are verified.
    Manifests whose signature is invalid carry a `fault`."""

    frm: Site
    token: int
    body: messages.Request


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to effects.Request(id). `rtt_s` is the time it took."""

    id: int
    body: messages.Reply
    rtt_s: float


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """effects.Request(id) had no answer. `reason`: timeout, unreachable, untrusted, refused, or
    not_saved (it was not sent)."""

    id: int
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TransferDone:
    """effects.StartTransfer(id) arrived whole at the other side."""

    id: int


@dataclass(frozen=True, slots=True)
class TransferFailed:
    id: int
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TransferBegan:
    """The stream of a promised model from `frm` has begun or continues; sent every few seconds. Without this
    event another site's offer may displace the promise, because the accept may have been lost."""

    frm: Site
    hash: str


@dataclass(frozen=True, slots=True)
class ModelArrived:
    """A promised model from `frm` is whole, hash-checked and in the store."""

    frm: Site
    model: ModelRef


@dataclass(frozen=True, slots=True)
class ModelBroken:
    """A promised model from `frm` failed the checks at arrival, or its stream ended for good."""

    frm: Site
    hash: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker is up, with its model at the end of `round`."""

    round: int
    steps: int
    cases: int
    contract: tuple[tuple[str, str], ...]
    """The contract with the network signature filled in."""
    last_visit: str | None = None
    """Hash of the last visiting model that its checkpoint includes (visited, refused or reverted)."""
    dice_val: float | None = None
    last_global: str | None = None
    """Hash of the last global model from which its weights were taken."""
    own_steps: int | None = None
    """Steps that this site took itself; None: as many as `steps`."""
    ahead: int = 0
    """Rounds by which the federation is ahead of this site's own count (Budget.ahead)."""
    last_swap: ExchangeId | None = None
    """The last swap that its checkpoint includes."""
    personal_refusal: str = "no_personal"
    """Why its personal model is never sent: no_personal, private, private_part, private_network,
    partial_labels; "" where it
    may be."""
    takes_personal: bool = False
    """Whether peers' personal models are of use here."""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker died or was killed."""

    reason: str
    final: bool = False
    """It will not be started again."""
    waits: bool = False
    """It only waits for data that are away: no model is to blame."""


@dataclass(frozen=True, slots=True)
class VisitResult:
    """What became of the model that visited in a round."""

    hash: str
    outcome: Literal["merged", "refused", "kept_out"]
    """`merged`: taken in. `refused`: failed the worker's checks. `kept_out`: neither."""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """The worker finished and checkpointed a round. `export` is the model to offer, if one was asked for.

    `reverted` is the hash of an earlier visitor whose effect the validation guard has just undone.
    """

    round: int
    steps: int
    dice_val: float | None
    export: ModelRef | None = None
    visit: VisitResult | None = None
    reverted: str | None = None
    own_steps: int | None = None
    """As in WorkerReady."""
    ahead: int = 0
    """As in WorkerReady, after this round."""


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The worker made the global model of effects.Aggregate(round, attempt); it is in the store."""

    round: int
    attempt: int
    model: ModelRef
    contributors: tuple[Site, ...]
    """The sites whose updates are in it."""
    refused: tuple[tuple[Site, str], ...] = ()
    """Updates that failed the worker's checks, with a stable reason code."""


@dataclass(frozen=True, slots=True)
class AggregationFailed:
    """The worker could make nothing of effects.Aggregate(round, attempt)."""

    round: int
    attempt: int
    reason: str
    refused: tuple[tuple[Site, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotExported:
    """The worker wrote its shared model for effects.ExportSnapshot; it is in the store."""

    swap: ExchangeId
    model: ModelRef | None
    """None: it could not, for `reason`: not_finite, disk_full …"""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotAdmitted:
    """The worker checked the partner's snapshot."""

    swap: ExchangeId
    reason: str = ""
    """A stable code: why it is refused; "" where it is admitted."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SwapApplied:
    """A checkpoint holds the swap's effect, and names the swap."""

    swap: ExchangeId
    reason: str = ""
    """Why it could not be applied; "" where it was."""
    steps: int | None = None
    """Steps behind the model now; None: as before. A copy brings its maker's steps."""
    ahead: int | None = None
    """As in WorkerReady, after a copy."""


@dataclass(frozen=True, slots=True)
class HarmfulPeer:
    """Swaps with a peer did harm here, by the worker's measure: validation NLL just after less just before
    (docs/design/swap.md)."""

    site: Site
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PersonalExported:
    """The worker wrote its personal model for effects.ExportPersonal; it is in the store."""

    model: ModelRef | None
    """None: it could not, for `reason`: not_finite, disk_full …"""
    round: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PersonalHeld:
    """The worker has read the models of effects.HoldPersonal."""

    refused: tuple[tuple[Site, str, str, str], ...] = ()
    """(site, hash, stable reason code, detail) of each that failed its checks."""


@dataclass(frozen=True, slots=True)
class Pause:
    """An operator pauses (or, with paused=False, resumes) training and exchange."""

    paused: bool


@dataclass(frozen=True, slots=True)
class TransferWindow:
    """The hours in which this site may begin to send have come, or are over. At the start they have."""

    open: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell the others that this site leaves. After this step's effects it counts as left."""


@dataclass(frozen=True, slots=True)
class LiftQuarantine:
    """An operator clears a site's record: its offences and its manifests' numbers are forgotten."""

    site: Site


@dataclass(frozen=True, slots=True)
class SitesChanged:
    """peers.yaml was reloaded: name → listed address, without this site itself."""

    sites: Mapping[Site, str]
    rekeyed: bool = False
    """Whether this site signs with another key from now on; its record is then sent again, signed with that
    key."""
    listed: str = ""
    """As in NodeSetup; "": unchanged."""


Event = (
    Start
    | Tick
    | Incoming
    | Reply
    | RequestFailed
    | TransferDone
    | TransferFailed
    | TransferBegan
    | ModelArrived
    | ModelBroken
    | WorkerReady
    | WorkerLost
    | RoundFinished
    | Aggregated
    | AggregationFailed
    | SnapshotExported
    | SnapshotAdmitted
    | SwapApplied
    | HarmfulPeer
    | PersonalExported
    | PersonalHeld
    | Pause
    | TransferWindow
    | Leave
    | SitesChanged
    | LiftQuarantine
)
