"""Which peer's swaps do harm here: validation NLL just after a swap, less just before it.

The loss of a case is that over a few windows of it, always the same ones (evaluation/few_windows.py): whole
images, twice for each swap, would take longer than the training itself.

For each peer the last three swaps are kept, by patient. With d the mean of a peer's, less the mean of all
other peers' (0 where there is no other), a peer does harm where, over the patients,

    mean(d) > max(0.05, 3·SE(d))                                                                         (1)

with three patients or more. It must stand out among the others even without the worst of its three swaps:
with d' the same difference for the two others of them, and m_k the mean change of each other peer whose three
swaps are known (SD: 0 where fewer than two others were met),

    mean(d') > 3·SD(m_k),   three such peers, or all that were met                                       (2)

Swaps with a peer that has left lapse: it would otherwise stay one that is to be waited for. A peer that has
just mixed with a harmful one passes its harm on once, and is not the cause. Nothing is undone: the core sets
the peer aside (docs/design/swap.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gossipseg.learn.evaluation.paired import LEAST_PATIENTS

SWAPS_KEPT = 3
LEAST_HARM, STANDARD_ERRORS, DEVIATIONS = 0.05, 3.0, 3.0
LEAST_PEERS, ENOUGH_PEERS = 2, 3
LAPSED = 20
"""A peer's swaps lapse after this many swaps with others, times the number of peers."""
LOST = 10.0
"""Change of the loss, in nats, where it was finite before a swap and is not after it."""

ByPatient = Mapping[str, float]


class Harm:
    """What the last swaps with each peer did to the loss, by patient."""

    def __init__(self) -> None:
        self._kept: dict[str, list[dict[str, float]]] = {}
        self._since: dict[str, int] = {}
        """Swaps with others since the last one with each peer."""

    def note(self, peer: str, change: ByPatient) -> str:
        """Take in a swap's change of the loss; why the peer does harm, or ""."""
        kept = self._kept.setdefault(peer, [])
        kept.append(dict(change))
        del kept[:-SWAPS_KEPT]
        self._since = {**{name: n + 1 for name, n in self._since.items()}, peer: 0}
        for name in [name for name, n in self._since.items() if n > LAPSED * len(self._since)]:
            del self._kept[name], self._since[name]
        return self._judged(peer) if len(kept) == SWAPS_KEPT else ""

    def _judged(self, peer: str) -> str:
        others = _means([c for name, changes in self._kept.items() if name != peer for c in changes])
        differences = list(_differences(self._kept[peer], others).values())
        if len(differences) < LEAST_PATIENTS:
            return ""
        mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        if mean <= max(LEAST_HARM, STANDARD_ERRORS * error):
            return ""
        milder = sorted(self._kept[peer], key=_mean)[:-1]
        if _mean(_differences(milder, others)) <= self._usual(peer):
            return ""
        return (
            f"its last {SWAPS_KEPT} swaps raised the validation loss by {mean:.3f} ± {error:.3f} "
            f"more than those of others, over {len(differences)} patients"
        )

    def _usual(self, peer: str) -> float:
        """How far the other peers' swaps differ from each other: equation (2)."""
        others = {name: changes for name, changes in self._kept.items() if name != peer}
        if len(others) < LEAST_PEERS:
            return 0.0
        known = [changes for changes in others.values() if len(changes) == SWAPS_KEPT]
        means = [_mean(_means(changes)) for changes in known]
        if len(means) < min(ENOUGH_PEERS, len(others)):
            return math.inf  # it is told once there is something to compare it with
        return DEVIATIONS * statistics.stdev(means)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values."""
        kept = {peer: [dict(change) for change in kept] for peer, kept in self._kept.items()}
        return {"kept": kept, "since": dict(self._since), "of": "windows"}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what state() gave. An earlier version's (None, or of whole images) is left out."""
        if state is None or state.get("of") != "windows":
            state = {"kept": {}, "since": {}}
        self._kept = {peer: [dict(change) for change in kept] for peer, kept in state["kept"].items()}
        self._since = dict(state["since"])


def change_by_patient(
    before: Sequence[float | None], after: Sequence[float | None], patients: Sequence[str]
) -> dict[str, float]:
    """Each patient's mean change of the loss, over the cases with a finite loss before.

    A loss that is finite no more has risen by LOST.
    """
    found: dict[str, list[float]] = {}
    for b, a, patient in zip(before, after, patients, strict=True):
        if b is not None and a is not None and math.isfinite(b):
            found.setdefault(patient, []).append(a - b if math.isfinite(a) else LOST)
    return {patient: statistics.fmean(values) for patient, values in found.items()}


def _differences(changes: Sequence[ByPatient], others: ByPatient) -> dict[str, float]:
    """By patient, where the peer's swaps have a figure."""
    return {patient: value - others.get(patient, 0.0) for patient, value in _means(changes).items()}


def _mean(values: ByPatient) -> float:
    """0 where there is none."""
    return statistics.fmean(values.values()) if values else 0.0


def _means(changes: Sequence[ByPatient]) -> dict[str, float]:
    patients = {patient for change in changes for patient in change}
    return {p: statistics.fmean(c[p] for c in changes if p in c) for p in sorted(patients)}
