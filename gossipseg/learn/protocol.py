"""The messages between daemon and worker: JSON lines over the unix socket, in both directions.

A line is `{"type": "<class name>", ...fields}`. Numbers that JSON does not know (NaN, infinity) become null.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from gossipseg.core.types import ModelRef

MAX_LINE_BYTES = 8 << 20
"""A longer line is an error: the largest message is Ready with a network's schema."""

SOCKET_ENV = "GOSSIPSEG_WORKER_SOCKET"
"""Environment variable with the path of the socket on which the daemon listens."""

VisitOutcome = Literal["merged", "refused", "kept_out"]
FatalKind = Literal["config", "data", "away", "local"]
"""away: the data are not there now, and may come back by themselves."""
Activity = Literal["training", "validation", "test"]
WireSchema = dict[str, tuple[str, tuple[int, ...]]]
"""Name → (safetensors dtype such as "F16", shape) of every tensor of a wire model file."""


class JobError(ValueError):
    """A line is not a message of this protocol."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value inside a message. Reading checks every type, and that no field is missing or unknown."""


class _Line(_Part, frozen=True, tag=True):
    """A message: its class name stands in the line as `type`."""


# ---------------------------------------------------------------- daemon → worker


class Configure(_Line, frozen=True):
    """The first message: `spec` is dataclasses.asdict(learn.params.WorkerSpec)."""

    spec: dict[str, Any]


class Visit(_Part, frozen=True):
    """A model from the store that shall visit: the wire file at `path` with blake3 `hash`, sent by `frm`."""

    path: str
    hash: str
    frm: str
    steps: int = 0
    cases: int = 0
    round: int = 0
    """Round of the federation's budget that the model stands at the end of, as its sender says."""

    @classmethod
    def of(cls, model: ModelRef, frm: str, path: Path) -> Visit:
        """The visit of a model that the core knows; `path`: its file in the store."""
        return cls(str(path), model.hash, frm, model.steps, model.cases, model.round)


class GlobalModelFile(_Part, frozen=True):
    """A global model in the store: its wire file, blake3 `hash` and federation round."""

    path: str
    hash: str
    round: int

    @classmethod
    def of(cls, model: ModelRef, path: Path) -> GlobalModelFile:
        """A global model that the core knows; `path`: its file in the store."""
        return cls(str(path), model.hash, model.round)


class StartRound(_Line, frozen=True):
    """Run round number `round` (1-based: the round to complete), with a visitor or alone."""

    round: int
    visit: Visit | None = None
    export: bool = False
    """Write the wire model to outbox/ at the end and name it in RoundDone."""
    start_from: GlobalModelFile | None = None
    """The global model to begin with; None: from the weights as they are."""
    settling_in: bool = False
    """The first round of a site that joined after the others had begun."""
    finetuning: bool = False
    """One of the last rounds, trained alone."""
    listed: list[str] | None = None
    """The federation's sites: models of others that are held leave. None: they are not told."""
    ahead: int = 0
    """Under a coordinator: rounds by which the federation is ahead of `round`. In gossip the worker tells."""


class UpdateFile(_Part, frozen=True):
    """One site's update in the store."""

    site: str
    path: str
    cases: int
    steps: int = 0
    hash: str = ""
    """blake3 of the file."""


class Aggregate(_Line, frozen=True):
    """Make the global model of a federation round; only between two rounds of this site's own."""

    round: int
    attempt: int
    updates: list[UpdateFile]


class Swap(_Part, frozen=True):
    """The name of a swap: who asked for it, and that site's count of its offers (docs/design/swap.md)."""

    asker: str
    number: int


class ExportSnapshot(_Line, frozen=True):
    """Write the shared model as it is to outbox/, at the next step's end or while idle. `keeps`: this site
    applies nothing of the swap."""

    swap: Swap
    keeps: bool = False


class AdmitSnapshot(_Line, frozen=True):
    """Check a partner's snapshot that is in the store, as a visiting model is checked."""

    swap: Swap
    frm: str
    path: str
    hash: str


class ApplySwap(_Line, frozen=True):
    """Apply a swap at the next step's end or while idle, checkpoint, and report.

    `mix`: T += weight·(theirs − own), both as they went over the wire. `copy`: T = theirs, with its round and
    steps. The swap that the checkpoint names is reported again and not applied.
    """

    swap: Swap
    frm: str
    part: Literal["mix", "copy"]
    weight: float
    theirs: str
    """Path of the partner's snapshot in the store."""
    hash: str
    own: str | None
    """Path of the own snapshot in the store; None for a copy."""
    steps: int = 0
    round: int = 0
    gave: bool = False
    """Whether the partner got the own snapshot, as far as is known."""


class ExportPersonal(_Line, frozen=True):
    """Write the personal model's average to outbox/, between two rounds or while idle."""


class PersonalFile(_Part, frozen=True):
    """A peer's personal model in the store: its wire file, blake3 `hash` and its maker's rounds."""

    site: str
    path: str
    hash: str
    round: int = 0


class HoldPersonal(_Line, frozen=True):
    """The peers' personal models that may predict here from now on: all of them; others are let go of."""

    models: list[PersonalFile]


class SetPaused(_Line, frozen=True):
    """Hold between two steps, or go on."""

    paused: bool


class Stop(_Line, frozen=True):
    """Finish the current step, checkpoint (mid-round for a local round), exit 0."""


# ---------------------------------------------------------------- worker → daemon


class Preparing(_Line, frozen=True):
    """Progress outside of rounds: data scan, cache, the test evaluation before the first round, and the
    combination of updates."""

    activity: str
    fraction: float


class Ready(_Line, frozen=True):
    """The model stands at the end of `round`; StartRound(round + 1) may come."""

    round: int
    steps: int
    """Optimizer steps behind the model: its own, or the larger of its own and what it merged."""
    cases: int
    network_signature: str
    tensors: WireSchema
    """What travels: the daemon checks headers of incoming files against this."""
    parameters: int
    device: str
    amp: str
    splits: dict[str, int]
    """Cases by split: training, validation, test."""
    last_visit: str | None = None
    visits: int = 0
    dice_val: float | None = None
    dice_test_start: float | None = None
    dice_test: float | None = None
    initial_hash: str = ""
    """blake3 over the shared tensors of W_0: equal at all sites of a federation."""
    warning: str = ""
    """Something an administrator should know, such as a damaged checkpoint that was passed over."""
    last_global: str | None = None
    """Hash of the last global model that its weights were taken from."""
    update_tensors: WireSchema = {}
    """What an update holds, where the algorithm has a coordinator."""
    spent: Spent | None = None
    """Privacy spent by differentially private training."""
    own_steps: int | None = None
    """Those of the steps that the site took itself: what no other site can claim."""
    last_swap: Swap | None = None
    """The last swap that its checkpoint holds."""
    deployed: str = ""
    """As in RoundDone: what has been deployed since the last validation."""
    deployed_reason: str = ""
    ahead: int = 0
    """Rounds by which the federation's budget is ahead of this site's own count: a site that joins late
    takes the round of the model that it takes over. Negative where it has trained rounds alone."""
    splits_from: str = ""
    """Who said which case is in which split, in words."""
    personal_tensors: WireSchema = {}
    """What a file of a personal model holds; empty where there is none."""
    personal_refusal: str = "no_personal"
    """Why its own personal model is never sent: no_personal, private, private_part, private_network,
    partial_labels; ""
    where it may be."""
    takes_personal: bool = False
    """Whether peers' personal models are of use here: there are validation patients enough to choose by."""


class Progress(_Line, frozen=True):
    """Where the round is; sent at most about four times a second."""

    round: int
    step: int
    steps_per_round: int
    activity: Activity
    fraction: float
    """0..1 of the activity."""
    loss: float | None = None
    steps_per_s: float | None = None


class Export(_Part, frozen=True):
    """A wire file in outbox/, to be adopted by the store."""

    path: str
    cases: int
    steps: int
    dice_val: float | None = None
    """Mean validation Dice of the average of this very model, whatever the site deploys; others see it."""


class VisitDone(_Part, frozen=True):
    """What became of the visiting model."""

    hash: str
    outcome: VisitOutcome
    reason: str = ""
    """Stable code when refused: schema_mismatch, bad_format, not_finite, unreadable, norm_exploded,
    layer_changed_too_much, unrelated. `detail` says more."""
    detail: str = ""
    frm: str = ""


class Spent(_Part, frozen=True):
    """What differentially private training has cost so far."""

    epsilon: float | None
    """None: beyond all numbers."""
    delta: float
    steps: int
    max_epsilon: float | None = None
    over: bool = False
    """Another step would cost more than max_epsilon: training here has ended."""


class RoundDone(_Line, frozen=True):
    """A round is finished and, unless `warning` says otherwise, checkpointed."""

    round: int
    steps: int
    loss: float | None
    terms: dict[str, float | None]
    """Means of the algorithm's terms over the round, such as seg, pull, push."""
    dice_val: float | None
    """Mean validation Dice of the deployment model (EMA); None in rounds without validation."""
    dice_val_local: list[float | None] | None
    """The same per foreground class."""
    seconds: float
    export: Export | None = None
    visit: VisitDone | None = None
    reverted: str | None = None
    """Hash of an earlier visitor whose effect the validation guard has just undone."""
    reverted_frm: str | None = None
    own_steps: int | None = None
    """As in Ready."""
    dice_test: float | None = None
    dice_test_start: float | None = None
    warning: str = ""
    """Something an administrator should know, such as a checkpoint that did not fit on the disk."""
    spent: Spent | None = None
    """Privacy spent by differentially private training."""
    deployed: str = ""
    """With a personal model: `mix`, or the one that predicts alone, `personal` or `shared`; else ""."""
    deployed_reason: str = ""
    """In one line: Dice alone and deployed, the gain, and the weights."""
    ahead: int = 0
    """As in Ready, after this round."""


class AggregateDone(_Line, frozen=True):
    """What came of Aggregate(round, attempt): a file in outbox/, or the reason why there is none."""

    round: int
    attempt: int
    export: Export | None
    contributors: list[str]
    refused: dict[str, str]
    """Site → stable reason code of an update that failed the checks: unreadable, schema_mismatch, bad_format,
    not_finite, norm_exploded, layer_changed_too_much, unrelated."""
    reason: str = ""
    detail: str = ""
    notes: dict[str, Any] = {}
    """What the algorithm wants seen, such as the similarity of the sites."""
    seconds: float = 0.0


class SnapshotExported(_Line, frozen=True):
    """What came of ExportSnapshot: a file in outbox/, or the reason why there is none."""

    swap: Swap
    export: Export | None
    round: int = 0
    reason: str = ""


class SnapshotAdmitted(_Line, frozen=True):
    """What came of AdmitSnapshot. `reason`: a code as in VisitDone; "" where the snapshot is admitted."""

    swap: Swap
    reason: str = ""
    detail: str = ""


class SwapApplied(_Line, frozen=True):
    """What came of ApplySwap. `reason`: why the swap was not applied; "" where a checkpoint holds it."""

    swap: Swap
    reason: str = ""
    detail: str = ""
    steps: int = 0
    """Optimizer steps behind the model now."""
    ahead: int = 0
    """As in Ready."""
    frm: str = ""
    harm: str = ""
    """Why the last swaps with `frm` did harm here; "" where they did not."""
    copied: bool = False
    """Whether the partner's model was taken over: no score is of the model that is there now."""
    deployed: str = ""
    """After a copy what predicts now, as in RoundDone; "" where there is one model only."""
    deployed_reason: str = ""


class PersonalExported(_Line, frozen=True):
    """What came of ExportPersonal: a file in outbox/, or the reason why there is none."""

    export: Export | None
    round: int = 0
    reason: str = ""


class PersonalRefused(_Part, frozen=True):
    """A peer's personal model that failed the checks. `reason`: a code as in VisitDone."""

    site: str
    hash: str
    reason: str
    detail: str = ""


class PersonalHeld(_Line, frozen=True):
    """What came of HoldPersonal. Where the mix was chosen again, what is deployed now."""

    refused: list[PersonalRefused]
    ended: bool = False
    """Whether training has ended."""
    chosen: bool = False
    deployed: str = ""
    """As in RoundDone."""
    deployed_reason: str = ""
    dice_val: float | None = None
    dice_test: float | None = None
    warning: str = ""


class MixChosen(_Line, frozen=True):
    """After a restart a site whose training had ended has chosen anew which models predict: one may not any
    more, or the cases by which they were chosen are others."""

    deployed: str
    """As in RoundDone."""
    deployed_reason: str
    dice_val: float | None = None
    dice_test: float | None = None
    warning: str = ""


class Fatal(_Line, frozen=True):
    """The worker cannot go on; it exits next with the code of errors.py."""

    kind: FatalKind
    message: str


SwapOrder = ExportSnapshot | AdmitSnapshot | ApplySwap
SwapReport = SnapshotExported | SnapshotAdmitted | SwapApplied
PersonalOrder = ExportPersonal | HoldPersonal
PersonalReport = PersonalExported | PersonalHeld
ToWorker = Configure | StartRound | Aggregate | SwapOrder | PersonalOrder | SetPaused | Stop
FromWorker = (
    Preparing | Ready | Progress | RoundDone | AggregateDone | SwapReport | PersonalReport | MixChosen | Fatal
)
Message = ToWorker | FromWorker


def encode(message: Message) -> bytes:
    """One line, newline included."""
    doc = {"type": type(message).__name__, **_plain(message)}
    return json.dumps(doc, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line. Raises JobError for anything that is not one."""
    try:
        # The standard library reads: file names that are no UTF-8 travel as lone surrogates.
        message: Message = msgspec.convert(json.loads(line), Message)
    except msgspec.ValidationError as e:
        raise JobError(f"not a message: {e}: {line[:120]!r}") from None
    except (ValueError, RecursionError) as e:
        raise JobError(f"not JSON: {e}") from None
    return message


def _plain(value: Any) -> Any:
    """The value as JSON has it, for the standard library to write: it knows numpy's float64 as a float."""
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


class LineReader:
    """Cuts a byte stream into lines; feed() takes what came and returns the whole lines in it."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._rest = b""
        self._max = max_line_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Whole lines, without newlines. Raises JobError when a line grows beyond the limit."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._max:
            raise JobError(f"a line is longer than {self._max} bytes")
        return [line for line in lines if line]
