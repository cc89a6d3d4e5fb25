"""The audit log: one line for each model sent, received, refused, merged or undone, and its effect on Dice.

Lines wait in memory for the milliseconds until they are fsynced. While the disk is full they keep waiting,
the status says so, and training continues. Lines that do not fit into the queue are counted in a line
`audit_gap`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gossipseg.core import effects, events
from gossipseg.core.messages import Offer, SwapSnapshot
from gossipseg.core.types import ModelRef, Site
from gossipseg.daemon.health.disk import DiskWatch
from gossipseg.errors import LocalError
from gossipseg.store.auditlog import AuditLog

MAX_WAITING = 10_000
RETRY_S = 5.0
FOLD_AFTER, FOLD_S = 20, 60.0
"""Refusals per site and reason with a line of their own, within these seconds; further ones are counted."""
MOST_FOLDS = 1000
"""Kinds of refusals that are counted before those of the past are forgotten."""
FOLDED_NOTES = frozenset(
    {
        "offer_in_rejected",
        "record_forged",
        "duplicate_site",
        "peer_refused",
        "swap_in_refused",
        "swap_dropped",
    }
)
"""Notes that a peer can cause with one message each."""
_REMEMBERED = 200
"""Remembered offers per peer. One peer's offers must neither displace nor stand for another's."""

NOTES: Mapping[str, str] = {
    "transfer_done": "model_sent",
    "transfer_failed": "model_not_sent",
    "offer_rejected": "model_declined",
    "model_arrived": "model_received",
    "offer_in_rejected": "model_refused",
    "model_broken": "model_refused",
    "visit_refused": "model_refused",
    "visit_merged": "model_merged",
    "visit_kept_out": "model_kept_out",
    "visit_reverted": "model_reverted",
    "model_dropped": "model_dropped",
    "personal_sent": "personal_sent",
    "personal_not_sent": "model_not_sent",
    "personal_received": "personal_received",
    "personal_refused": "model_refused",
    "swap_in_refused": "swap_refused",
    "swap_applied": "swap_applied",
    "swap_dropped": "swap_dropped",
    "swap_in_doubt": "swap_in_doubt",
    "swap_lost": "swap_lost",
    "peer_set_aside": "peer_set_aside",
    "round_committed": "round_committed",
    "update_refused": "update_left_out",
    "peer_refused": "peer_refused",
    "duplicate_site": "duplicate_site",
    "peer_quarantined": "peer_quarantined",
    "quarantine_over": "quarantine_over",
    "quarantine_lifted": "quarantine_lifted",
}
"""Core note → name in the audit log. `model_declined`: a peer did not accept the model."""
OWN_NOTES = frozenset(
    {"daemon_started", "daemon_stopped", "config_reloaded", "config_refused", "record_forged"}
)
"""Shell notes that the audit log keeps under the same name."""
_STAGES = {
    "offer_in_rejected": "offer",
    "model_broken": "arrival",
    "visit_refused": "visit",
    "personal_refused": "personal",
}
_JUDGED = ("visit_refused", "visit_merged", "visit_kept_out", "visit_reverted")
_KEPT = (
    "hash", "bytes", "round", "at_round", "attempt", "contributors", "absent", "detail", "asker", "number",
    "rounds",
)  # fmt: skip


@dataclass(slots=True)
class _Fold:
    """Refusals of one kind within a window."""

    since: float
    count: int = 0
    folded: int = 0


class Audit:
    """Observes events and effects. `clock` gives wall seconds. `warn("audit", text)` sets a warning; ""
    clears it."""

    def __init__(
        self,
        log: AuditLog,
        clock: Callable[[], float],
        warn: Callable[[str, str], None],
        disk: DiskWatch | None = None,
    ) -> None:
        self.written = self.lost = 0
        """Lines on disk, and lines that could not be kept, since the start."""
        self._log, self._clock, self._warn = log, clock, warn
        self._disk = disk if disk is not None else DiskWatch(str(log.directory))
        self._waiting: deque[tuple[float, str, dict[str, Any]]] = deque()
        self._gap = 0
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failed = False
        self._dice: tuple[float | None, float | None] = (None, None)
        """Validation Dice before and after the last finished round."""
        self._common: ModelRef | None = None
        self._offered: dict[Site, OrderedDict[str, ModelRef]] = {}
        self._folds: dict[tuple[str, Site, str], _Fold] = {}

    @property
    def head(self) -> tuple[int, str]:
        """(seq, hash) of the newest line on disk."""
        return self._log.head

    @property
    def kinds(self) -> int:
        """Kinds of refusals that are counted now: by event, site and reason."""
        return len(self._folds)

    # ------------------------------------------------------------ what happens

    def event(self, event: events.Event) -> None:
        """Record an event."""
        match event:
            case events.Incoming(frm=frm, body=Offer(model=model) | SwapSnapshot(model=model)):
                offered = self._offered.setdefault(frm, OrderedDict())
                offered[model.hash] = model
                while len(offered) > _REMEMBERED:
                    offered.popitem(last=False)
            case events.WorkerReady(dice_val=dice_val):
                self._dice = (self._dice[1], dice_val if dice_val is not None else self._dice[1])
                self._common = None
            case events.WorkerLost():
                self._common = None
            case events.RoundFinished(dice_val=dice_val, round=round):
                self._dice = (self._dice[1], dice_val if dice_val is not None else self._dice[1])
                if self._common is not None:
                    fields = _described(self._common)
                    self._put("model_merged", None, "", {**fields, "at_round": round, **self._scores()})
                self._common = None
            case events.Aggregated(refused=refused) | events.AggregationFailed(refused=refused):
                for site, reason in refused:
                    detail = {"kind": "update", "round": event.round, "stage": "combination"}
                    self._put("model_refused", site, reason, detail)

    def effect(self, effect: effects.Effect) -> None:
        """Record an effect that the core wants done."""
        match effect:
            case effects.StartRound(start_from=ModelRef() as model):
                self._common = model
            case effects.Note(event=name) if name in NOTES:
                self._noted(effect)

    def note(self, event: str, fields: Mapping[str, Any]) -> None:
        """Record a note of the shell."""
        if event in OWN_NOTES:
            detail: dict[str, Any] = {}
            site = fields.get("site")
            if event not in FOLDED_NOTES or self._unfolded(event, str(site), "", detail):
                self._put(event, site, str(fields.get("reason", "")), detail)

    def _noted(self, note: effects.Note) -> None:
        if note.event == "model_dropped" and note.site is None:
            return  # this site's own model found no receiver: nothing came or went
        detail = {k: note.detail[k] for k in _KEPT if k in note.detail}
        offered = self._offered.get(note.site or "")
        known = offered.get(str(detail.get("hash", ""))) if offered is not None else None
        if "hash" in detail:
            detail = {
                **(_described(known) if known else {"kind": note.detail.get("holds", "model")}),
                **detail,
            }
            detail["kind"] = note.detail.get("holds", detail["kind"])
        if note.event in _STAGES:
            detail["stage"] = _STAGES[note.event]
        if note.event in _JUDGED:
            detail |= self._scores()
        name, site = NOTES[note.event], note.site or ""
        reason = "" if note.event == "peer_refused" else note.reason  # that one quotes the peer's own words
        if note.event in FOLDED_NOTES and not self._unfolded(name, site, reason, detail):
            return
        self._put(name, note.site, note.reason, detail)

    def _scores(self) -> dict[str, Any]:
        before, after = self._dice
        return {"dice_before": before, "dice_after": after}

    def _unfolded(self, event: str, site: Site, reason: str, detail: dict[str, Any]) -> bool:
        """Whether the refusal gets its own line: a flood must not push everything else out of the log."""
        now, key = self._clock(), (event, site, reason)
        if len(self._folds) >= MOST_FOLDS:
            self._folds = {k: f for k, f in self._folds.items() if 0 <= now - f.since < FOLD_S or f.folded}
        fold = self._folds.setdefault(key, _Fold(now))
        if not 0 <= now - fold.since < FOLD_S:  # the wall clock may be set back, too
            if fold.folded:
                detail["more"] = fold.folded
            self._folds[key] = fold = _Fold(now)
        fold.count += 1
        fold.folded += fold.count > FOLD_AFTER
        return fold.count <= FOLD_AFTER

    def _put(self, event: str, peer: Site | None, reason: str, fields: Mapping[str, Any]) -> None:
        line = {"peer": peer, "reason": reason, **fields}
        line = {k: v for k, v in line.items() if v not in (None, "")}
        if len(self._waiting) >= MAX_WAITING:
            self._gap += 1
            self.lost += 1
            return
        self._waiting.append((self._clock(), event, line))
        self._wake.set()

    # ------------------------------------------------------------ to the disk

    async def run(self) -> None:
        """Write waiting lines, for ever; a full disk is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()
            if self._failed:
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> None:
        """Write the waiting lines now, in order, with one fsync."""
        async with self._writing:
            lines = list(self._waiting)
            if not lines:
                return
            gap = self._gap
            if gap:
                lines.append((self._clock(), "audit_gap", {"lines": gap}))
            try:
                await self._disk.beside("the audit log", self._log.append, lines)
            except LocalError as e:
                self._failed = True
                self._warn("audit", f"the audit log cannot be written: {e}")
                return
            for _ in range(len(lines) - bool(gap)):
                self._waiting.popleft()
            self._gap -= gap
            self.written += len(lines)
            if self._failed:
                self._failed = False
                self._warn("audit", "")

    async def close(self) -> None:
        """Write the remaining lines, and how many refusals were only counted."""
        for (event, site, reason), fold in self._folds.items():
            if fold.folded:
                stage = {"stage": "offer"} if event == "model_refused" else {}
                self._put(event, site, reason, {**stage, "more": fold.folded})
        await self.flush()
        self._log.close()


def _described(model: ModelRef) -> dict[str, Any]:
    return {"hash": model.hash, "kind": model.kind, "bytes": model.size_bytes, "round": model.round}
