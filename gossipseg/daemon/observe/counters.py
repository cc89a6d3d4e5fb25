"""What the metrics count, from the core's events and effects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gossipseg.core import effects, events
from gossipseg.core.types import Site

OTHER = "other"
REASONS = frozenset(
    {
        "aborted",
        "absurd_attempt",
        "beyond_budget",
        "already_visited",
        "bad_format",
        "bad_network",
        "broken",
        "busy",
        "cancelled",
        "cannot_dial",
        "common_model_too_far",
        "contract_mismatch",
        "cut_off",
        "disk_full",
        "displaced",
        "diverged",
        "dropped_there",
        "duplicate",
        "exchanges_nothing",
        "failed",
        "finished",
        "given_up",
        "hash_mismatch",
        "header_too_large",
        "in_doubt",
        "incomplete",
        "internal",
        "io_error",
        "later_attempt",
        "layer_changed_too_much",
        "leaving",
        "malformed",
        "manifest_contract",
        "manifest_federation",
        "manifest_forged",
        "manifest_mismatch",
        "manifest_missing",
        "manifest_replayed",
        "manifest_stranger",
        "missing",
        "network_too_large",
        "never_came",
        "no_answer",
        "no_cases",
        "no_exchange",
        "no_longer_listed",
        "no_memory",
        "no_personal",
        "no_plan",
        "no_such_swap",
        "norm_exploded",
        "not_coordinator",
        "not_expected",
        "not_finite",
        "not_here",
        "not_listed",
        "not_offered",
        "not_opened",
        "not_ready",
        "not_saved",
        "not_stored",
        "not_visited",
        "not_written",
        "old_number",
        "other_list",
        "other_model",
        "other_numbering",
        "other_round",
        "other_run",
        "other_sites",
        "oversize",
        "partial_damaged",
        "partial_labels",
        "partner_gone",
        "paused",
        "private",
        "private_network",
        "private_part",
        "quarantined",
        "refused",
        "removed",
        "replaced",
        "schema_mismatch",
        "sender_gone",
        "set_aside",
        "stage_over",
        "stale",
        "starting",
        "terms_forged",
        "terms_mismatch",
        "timeout",
        "too_large",
        "too_late",
        "too_many_calls",
        "too_old",
        "too_slow",
        "unimplemented",
        "unlisted",
        "unreachable",
        "unreadable",
        "unrelated",
        "untrusted",
        "validation",
        "warming_up",
        "window_closed",
        "worker_lost",
        "wrong_offset",
    }
)
"""Reason codes with their own label; a peer's invented code counts as `other`."""
LAG_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_TRANSFERS = {
    "transfer_done": ("out", "done"),
    "transfer_failed": ("out", "failed"),
    "model_arrived": ("in", "done"),
    "model_broken": ("in", "failed"),
    "personal_sent": ("out", "done"),
    "personal_not_sent": ("out", "failed"),
    "personal_received": ("in", "done"),
}
_REFUSALS = {
    "offer_in_rejected": "in",
    "model_broken": "in",
    "visit_refused": "in",
    "visit_reverted": "in",
    "offer_rejected": "out",
    "update_refused": "out",
    "swap_in_refused": "in",
    "swap_refused": "out",
    "personal_refused": "in",
    "personal_declined": "out",
}
_CHANGES = {
    "member_alive": "alive",
    "member_suspect": "suspect",
    "member_dead": "dead",
    "member_left": "left",
}


@dataclass(slots=True)
class Counters:
    """Counts since the daemon started."""

    rounds: int = 0
    refusals: Counter[tuple[str, Site, str]] = field(default_factory=Counter)
    """(direction, peer, reason). `in`: refused here; `out`: this site's model or call, refused by the
    peer."""
    transfers: Counter[tuple[str, Site, str]] = field(default_factory=Counter)
    """(direction, peer, done | failed)."""
    changes: Counter[tuple[Site, str]] = field(default_factory=Counter)
    """(peer, its new state)."""
    forged: Counter[Site] = field(default_factory=Counter)
    """Messages of a peer with records that their signer did not sign."""
    lag_buckets: list[int] = field(default_factory=lambda: [0] * (len(LAG_BUCKETS_S) + 1))
    lag_sum_s: float = 0.0

    def event(self, event: events.Event) -> None:
        """Count an event."""
        match event:
            case events.RoundFinished():
                self.rounds += 1
            case events.Aggregated(refused=refused) | events.AggregationFailed(refused=refused):
                for site, reason in refused:
                    self.refusals["in", site, known(reason)] += 1

    def effect(self, effect: effects.Effect) -> None:
        """Count an effect that the core wants done."""
        if not isinstance(effect, effects.Note) or effect.site is None:
            return
        name, site = effect.event, effect.site
        if name in _TRANSFERS:
            direction, outcome = _TRANSFERS[name]
            self.transfers[direction, site, outcome] += 1
        if name in _REFUSALS:
            self.refusals[_REFUSALS[name], site, known(effect.reason)] += 1
        if name in _CHANGES:
            self.changes[site, _CHANGES[name]] += 1

    def lagged(self, seconds: float) -> None:
        """Count a delay of the event loop."""
        place = next((i for i, bound in enumerate(LAG_BUCKETS_S) if seconds <= bound), len(LAG_BUCKETS_S))
        self.lag_buckets[place] += 1
        self.lag_sum_s += seconds


def known(reason: str) -> str:
    """The label of a reason code: only codes that this version knows, never a peer's own text."""
    return reason if reason in REASONS else OTHER
