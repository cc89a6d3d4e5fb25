"""How much each model says in a prediction: the rules, on figures alone.

With P the personal model's probabilities, T the shared one's, and n validation cases that have an NLL (three
at most of each patient), in this order:

    1  α̂ = argmin over {0, ¼, ½, ¾, 1} of NLL(α·P + (1−α)·T),  α = (n·α̂ + 4·½)/(n + 4)                    (1)
       α̂ is ½ at least, unless by patient T's paired validation Dice is above P's by more than one standard
       error, with three patients or more
    2  from 8 validation patients: g, greedy over P, T and the peers' personal models (ensemble selection,
       Caruana et al. 2004), blended into (1): (n·g + 8·w)/(n + 8), w the weights of (1). A peer's model
       with less than half of P's validation Dice, by patient, is left out: it would only make P less sure
       of itself. Taken if, by patient, its paired validation Dice is above that of (1) by more than one
       standard error                                                                                     (2)
    3  P alone where, by patient, the paired validation Dice of the mix is below P's by more than one standard
       error, with three patients or more                                                                 (3)

Priors that validation moves: choosing by a handful of cases does harm, and keeping P unless a gain is proved
gives half of the gain away (docs/design/equations.md §7). The loss favours the shared model beyond what its
Dice is worth: a model trained on one site's few images is too sure of itself.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gossipseg.learn.evaluation.paired import LEAST_PATIENTS, CaseScores, by_patient, paired_drop

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the personal model that are compared."""
PRIOR_SHARE, PRIOR_CASES = 0.5, 4
"""The share before any case has been seen, and the number of cases that it weighs as much as."""
CASES_PER_PATIENT = 3
"""Most cases of one patient that count: images of one patient err alike."""

GREEDY_PATIENTS = 8
"""Validation patients from which peers' personal models are chosen from."""
GREEDY_PRIOR = 8
"""The cases that the weights of equation (1) weigh as much as, in (2)."""
LEAST_OF_PERSONAL = 0.5
"""Least validation Dice of a peer's model alone, as a share of the personal model's."""
GREEDY_STEPS = 8
"""Most additions of a member, some perhaps added again."""

OWN_MODELS = ("personal", "shared")
"""The members that are the site's own models. They have their place among those that may predict, always."""
CHOSEN_AMONG_OTHERS = "chosen when other models were there, and not validated since"
OF_PEER = "personal of "
"""A peer's personal model is the member `personal of <site>`."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Which models predict, with what weights, and the validation behind it.

    `weights`: member → weight, in sum 1.
    """

    weights: Mapping[str, float]
    why: str = ""
    """Why it is one model alone; "" where it is not."""
    alone: float | None = None
    """Mean validation Dice of the personal model over the patients; None without a case or such a model."""
    shared: float | None = None
    """The same of the shared model."""
    deployed: float | None = None
    """The same of what these weights predict."""
    standard_error: float | None = None
    """Standard error of the mean difference, by patient; None with fewer than two."""
    patients: int = 0
    """Patients with a score of both."""
    cases: int = 0
    """n of equation (1)."""
    peers: Mapping[str, float | None] = field(default_factory=dict)
    """Member → mean validation Dice of a peer's personal model alone, of those that were compared."""
    round: int | None = None
    """The round of that validation; None: unknown."""

    @property
    def name(self) -> str:
        """In one word: `mix`, or the only member."""
        return next(iter(self.weights)) if len(self.weights) == 1 else "mix"

    @property
    def reason(self) -> str:
        """In one line: what the site would have alone, what it has, and from which models."""
        members = ", ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items())
        if self.why:
            members = f"{next(iter(self.weights))} alone, because {self.why}"
        if self.deployed is None:
            known = self.alone is not None or self.shared is not None
            return f"{members}; {CHOSEN_AMONG_OTHERS if known else 'no validation case has been scored'}"
        of = f"on {self.patients} patient{'s' if self.patients != 1 else ''}"
        if self.alone is None:
            return f"deployed {self.deployed:.4f} {of}; {members}"
        gain = f"{self.deployed - self.alone:+.4f}"
        if self.standard_error is not None:
            gain += f" ± {self.standard_error:.4f}"
        return f"alone {self.alone:.4f}, deployed {self.deployed:.4f}, gain {gain} {of}; {members}"


def counted(patients: Sequence[str]) -> int:
    """n of equation (1). `patients`: whose each validation case with an NLL is."""
    return sum(min(CASES_PER_PATIENT, n) for n in Counter(patients).values())


def share_of_personal(best: float, cases: int) -> float:
    """α of equation (1). `best`: α̂."""
    return (cases * best + PRIOR_CASES * PRIOR_SHARE) / (cases + PRIOR_CASES)


def best_share(losses: Mapping[float, Sequence[float | None]]) -> float:
    """α̂ of equation (1). `losses`: share → NLL of each case; None where a case has none.

    Of equal ones the share nearest to the prior wins, and without any case the prior itself.
    """
    means = {share: _mean(values) for share, values in losses.items()}
    known = {share: mean for share, mean in means.items() if mean is not None and math.isfinite(mean)}
    return min(known, key=lambda share: (known[share], abs(share - PRIOR_SHARE)), default=PRIOR_SHARE)


def supported(best: float, personal: CaseScores, shared: CaseScores, patients: Sequence[str]) -> float:
    """α̂ of equation (1), as far below one half as Dice bears it. `personal`, `shared`: Dice by case."""
    drop = paired_drop(personal, shared, patients)
    proven = (
        drop.patients >= LEAST_PATIENTS
        and drop.standard_error is not None
        and -drop.mean > drop.standard_error
    )
    return best if proven else max(best, PRIOR_SHARE)


class Candidates(Protocol):
    """All models that may predict together, on the validation cases in their order."""

    @property
    def members(self) -> Sequence[str]:
        """`personal`, `shared`, and the peers' (`personal of <site>`)."""

    def loss(self, counts: Mapping[str, int]) -> float:
        """Mean NLL over the cases of the members' mean, each counted that often."""

    def dice(self, weights: Mapping[str, float]) -> CaseScores:
        """Dice by case of what these weights predict."""

    def alone(self, member: str) -> CaseScores:
        """Dice by case of a peer's model alone."""


def able(candidates: Candidates, personal: CaseScores, patients: Sequence[str]) -> list[str]:
    """The members that may be chosen in (2). `personal`: Dice of P by case; `patients`: whose each is."""

    def good(member: str) -> bool:
        alone = candidates.alone(member)
        own, its = _over_patients(personal, alone, patients), _over_patients(alone, personal, patients)
        return own is not None and its is not None and its >= LEAST_OF_PERSONAL * own

    return [m for m in candidates.members if not m.startswith(OF_PEER) or good(m)]


def greedy(members: Sequence[str], loss: Callable[[Mapping[str, int]], float], most: int) -> dict[str, int]:
    """Ensemble selection: begin with P; add, again perhaps, the member that lowers the loss most, until none
    does.

    `most`: models that may predict together, P and T among them. Member → how often it was taken.
    """
    counts = {"personal": 1}
    least = loss(counts)
    for _ in range(GREEDY_STEPS):
        full = len({*counts, "personal", "shared"}) >= most
        open_to = [m for m in members if not full or m in counts or m == "shared"]
        tried = {m: loss({**counts, m: counts.get(m, 0) + 1}) for m in open_to}
        better = {m: found for m, found in tried.items() if math.isfinite(found) and found < least}
        if not better:
            break
        best = min(better, key=lambda m: better[m])
        counts[best], least = counts.get(best, 0) + 1, better[best]
    return counts


def blended(counts: Mapping[str, int], weights: Mapping[str, float], cases: int) -> dict[str, float]:
    """Equation (2). `counts`: from greedy(); `weights`: those of (1); `cases`: n."""
    total = sum(counts.values())
    return {
        member: (cases * counts.get(member, 0) / total + GREEDY_PRIOR * weights.get(member, 0.0))
        / (cases + GREEDY_PRIOR)
        for member in {**weights, **counts}
    }


def choose(
    losses: Mapping[float, Sequence[float | None]],
    personal: CaseScores,
    shared: CaseScores,
    mixes: Mapping[float, CaseScores],
    patients: Sequence[str],
    candidates: Candidates | None = None,
    most: int = 2,
) -> tuple[Mix, float]:
    """The rules in their order; the mix, and α̂, by which the scores of (1) are found in `mixes`.

    `losses`: share → NLL by case. `personal`, `shared`: Dice of these models by case. `mixes`: α̂ → Dice by
    case of what equation (1) makes of it. `patients`: whose each case is. All are in one order.
    `candidates`, `most`: for (2); None leaves it out.
    """
    broken = [name for name, share in (("personal", 1.0), ("shared", 0.0)) if not _finite(losses[share])]
    if broken:
        return _without(broken, personal, shared, patients), PRIOR_SHARE
    told = _with_loss(losses, patients)
    n, best = counted(told), supported(best_share(losses), personal, shared, patients)
    share, dice = share_of_personal(best, n), mixes[best]
    weights = {"personal": share, "shared": 1 - share}
    if candidates is not None and len(set(told)) >= GREEDY_PATIENTS:
        members = able(candidates, personal, patients)
        weights, dice = _wider(candidates, members, most, weights, dice, patients, n)
    mix = _told(weights, personal, shared, dice, patients, n)
    drop = paired_drop(personal, dice, patients)
    if (
        drop.patients >= LEAST_PATIENTS
        and drop.standard_error is not None
        and drop.mean > drop.standard_error
    ):
        others = "the shared model" if len(weights) == 2 else "the other models"
        why = f"with {others} validation Dice falls by {drop.mean:.4f} ± {drop.standard_error:.4f}"
        only_own = {"personal": 1.0}
        return replace(mix, weights=only_own, why=why, deployed=mix.alone, standard_error=0.0), best
    return mix, best


def _wider(
    candidates: Candidates,
    members: Sequence[str],
    most: int,
    weights: dict[str, float],
    dice: CaseScores,
    patients: Sequence[str],
    cases: int,
) -> tuple[dict[str, float], CaseScores]:
    """Equation (2): the weights and their Dice by case, or those of (1) as they are."""
    wider = blended(greedy(members, candidates.loss, most), weights, cases)
    scores = candidates.dice(wider)
    drop = paired_drop(dice, scores, patients)
    if drop.standard_error is not None and -drop.mean > drop.standard_error:
        return wider, scores
    return weights, dice


def _told(
    weights: Mapping[str, float],
    personal: CaseScores,
    shared: CaseScores,
    dice: CaseScores,
    patients: Sequence[str],
    cases: int,
) -> Mix:
    """The mix with the figures behind it. `dice`: of what the weights predict."""
    drop, alone = paired_drop(personal, dice, patients), _over_patients(personal, dice, patients)
    return Mix(
        weights,
        alone=alone,
        shared=_over_patients(shared, dice, patients),
        deployed=None if alone is None else alone - drop.mean,
        standard_error=drop.standard_error,
        patients=drop.patients,
        cases=cases,
    )


def _with_loss(losses: Mapping[float, Sequence[float | None]], patients: Sequence[str]) -> list[str]:
    """Whose the cases are that have an NLL: the others say nothing of α̂."""
    by_case = zip(*losses.values(), strict=True)
    return [p for p, values in zip(patients, by_case, strict=True) if None not in values]


def shared_alone(why: str, scores: CaseScores = (), patients: Sequence[str] = ()) -> Mix:
    """The shared model alone, and its validation Dice where there is one."""
    means = by_patient(scores, patients)
    dice = statistics.fmean(means) if means else None
    return Mix({"shared": 1.0}, why, shared=dice, deployed=dice, patients=len(means))


def _without(broken: Sequence[str], personal: CaseScores, shared: CaseScores, patients: Sequence[str]) -> Mix:
    """A model whose predictions are not finite has no part; the figures are those of the other one."""
    if "personal" in broken:
        which = (
            "both models' predictions are" if "shared" in broken else "the personal model's predictions are"
        )
        return shared_alone(f"{which} not finite", shared, patients)
    means = by_patient(personal, patients)
    dice = statistics.fmean(means) if means else None
    why = "the shared model's predictions are not finite"
    return Mix({"personal": 1.0}, why, alone=dice, deployed=dice, standard_error=0.0, patients=len(means))


def _finite(losses: Sequence[float | None]) -> bool:
    return all(loss is None or math.isfinite(loss) for loss in losses)


def limited(mix: Mix, peers: Collection[str], most: int) -> Mix:
    """The mix without what may not predict here any more; itself where all may.

    `peers`: those of the peers' models that may predict. `most`: models in all; of the peers' those
    with the largest weights stay. What the others said goes to those that are left, in proportion.
    """
    own = [member for member in mix.weights if not member.startswith(OF_PEER)]
    others = sorted((m for m in mix.weights if m in peers and m not in own), key=lambda m: -mix.weights[m])
    room = max(0, most - len({*own, *OWN_MODELS}))
    left = {m: w for m, w in mix.weights.items() if m in own or m in others[:room]}
    if len(left) == len(mix.weights):
        return mix
    if not any(left.values()):
        return shared_alone("the models that predicted may not any more")
    total = sum(left.values())
    weights = {member: weight / total for member, weight in left.items()}
    return replace(mix, weights=weights, deployed=None, standard_error=None)


def best_single(mix: Mix) -> tuple[str, float | None]:
    """The member that validates best by itself, and what the mix has above it; None where nothing tells.

    Without a validation score it is the one with the largest weight.
    """
    scores = {"personal": mix.alone, "shared": mix.shared, **mix.peers}
    known = {name: dice for name, dice in scores.items() if dice is not None and name in mix.weights}
    if not known:
        return max(mix.weights, key=lambda name: mix.weights[name]), None
    best = max(known, key=lambda name: known[name])
    return best, mix.deployed - known[best] if mix.deployed is not None else None


def only(mix: Mix) -> Mix:
    """The best single member, and what is lost by it."""
    best, lost = best_single(mix)
    why = "one model was asked for"
    if lost is not None:
        together = "both" if len(mix.weights) == 2 else f"all {len(mix.weights)}"
        why += f": validation Dice {mix.deployed:.4f} with {together}, {lost:+.4f} against this one"
    elif mix.alone is not None or mix.shared is not None:
        why += f"; what is lost is not known: {CHOSEN_AMONG_OTHERS}"
    own = {"personal": mix.alone, "shared": mix.shared, **mix.peers}.get(best)
    return replace(mix, weights={best: 1.0}, why=why, deployed=own, standard_error=None)


def _over_patients(scores: CaseScores, other: CaseScores, patients: Sequence[str]) -> float | None:
    """Mean over the patients that have both scores, of each patient's mean."""
    both = [a if b is not None else None for a, b in zip(scores, other, strict=True)]
    means = by_patient(both, patients)
    return statistics.fmean(means) if means else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None
