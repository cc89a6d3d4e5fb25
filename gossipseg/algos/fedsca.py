"""FedSCA: federated tuning of a transformer by adapters, combined by similarity (arXiv 2503.15390).

Standing: [P, abstract] parameter-efficient tuning at the site; only *low-level* adapters travel;
similarity-guided collaborative aggregation (SGCA). [O] All the rest, from equation (1) on, is our reading.

θ_k are the low adapters of site k (those of the first half of the blocks); high adapters, encoder, decoder
and norms stay. A site sends θ_k and, as `delta/…`, how far θ_k has moved since the last global model:

    Δ_k  = θ_k − θ_received                                                                                (1)
    s_ij = max(0, cos(Δ_i, Δ_j)),  0 where a Δ is 0                                                        (2)

and gets a model of its own, from n_k cases (or 1 each):

    similarity   w_ij = n_j·exp(s_ij/τ) / Σ_{l≠i} n_l·exp(s_il/τ)        for j ≠ i                         (3)
                 θ_i ← a_i·θ_i + (1−a_i)·Σ_{j≠i} w_ij·θ_j,               a_i = n_i/Σn                      (4)
    simplex      θ_i ← Σ_j w_ij·θ_j,  w_i = argmin α‖w − n/Σn‖² − ⟨s_i, w⟩ over the simplex,
                 the projection of n/Σn + s_i/(2α), with s_ii = 1                                          (5)
    fedavg       θ ← Σ n_k θ_k / Σ n_k, one for all: also in the first rounds                              (6)

Beside models of their own, (6) goes out to everybody else: a site that joins late or missed the round    (7)
has no part in (2), and would else go on from weights that no other site has seen.

A softmax over j that includes i itself would be 0.997 self at s = 0.3 and τ = 0.1: no collaboration at all.
Limits: equal similarities, and τ → ∞, make (4) the same as (6) for everybody; α → ∞ makes (5) so, α → 0
leaves every site its own; a site alone keeps its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from gossipseg.algos.average import running_average
from gossipseg.algos.base import Combined, Update, Weights
from gossipseg.algos.fedavg import FedAvg, weights_of
from gossipseg.algos.params import FedScaParams
from gossipseg.errors import ConfigError
from gossipseg.nets.params import WITH_ADAPTERS

DELTA = "delta/"
"""Before the names of the tensors of Δ in an update."""

Matrix = list[list[float]]


class FedSca(FedAvg):
    """Equations (1) to (7). `private_names`: all but the low adapters of an adapted network."""

    name = "fedsca"
    needs_anchor = True

    def __init__(self, params: FedScaParams, private_names: Collection[str]) -> None:
        if not any(".high_adapter." in name for name in private_names):
            raise ConfigError(
                "fedsca needs a network with adapters; this one has none",
                key="network.name",
                remedy=f"Choose one of: {', '.join(WITH_ADAPTERS)}.",
            )
        super().__init__(params.weighting, private_names)
        self.params = params

    def on_global(self, local: Weights, incoming: Weights) -> Weights:
        """θ from the global model; the rest stays, whatever came."""
        return {
            name: incoming.get(name, tensor) if self.is_shared(name) else tensor
            for name, tensor in local.items()
        }

    def update_of(self, local: Weights, anchor: Weights) -> Weights:
        """θ, and Δ of equation (1); without an anchor nothing has been received, and Δ is 0."""
        theta = super().update_of(local, anchor)
        delta = {DELTA + name: tensor - anchor.get(name, tensor) for name, tensor in theta.items()}
        return {**theta, **delta}

    def aggregate(self, updates: Sequence[Update], round: int) -> Combined:
        """SGCA. Reads each tensor of N updates 2·N + 1 times: two of them are in memory at most."""
        combined = Combined(iter(()))
        combined.tensors = self._combine(updates, round, combined.notes)
        return combined

    def _combine(
        self, updates: Sequence[Update], round: int, notes: dict[str, object]
    ) -> Iterator[tuple[str, Tensor]]:
        names = theta_names(updates)
        similarity = similarities(updates, names)
        sites = [update.site for update in updates]
        notes["similarity"] = {"sites": sites, "matrix": similarity}
        cases = weights_of(updates, self.weighting)
        yield from running_average([Theta(update, names) for update in updates], cases)
        if self.params.aggregation == "fedavg" or round <= self.params.warmup_rounds:
            return
        mixes = self._mixes(similarity, cases)
        for name in names:
            for site, mix in zip(sites, mixes, strict=True):
                yield f"{site}:{name}", mixed(updates, name, mix)

    def _mixes(self, similarity: Matrix, cases: Sequence[float]) -> Matrix:
        """Row i: what each site's θ weighs in the next θ_i; sums to 1."""
        if self.params.aggregation == "simplex":
            return [simplex_mix(row, cases, self.params.alpha) for row in similarity]
        return [similarity_mix(i, row, cases, self.params.tau) for i, row in enumerate(similarity)]


class Theta:
    """An update without its Δ."""

    def __init__(self, update: Update, names: Sequence[str]) -> None:
        self._update, self.names = update, names
        self.site, self.cases = update.site, update.cases

    def tensor(self, name: str) -> Tensor:
        return self._update.tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._update.shape(name)

    def part(self, name: str, begin: int, end: int) -> Tensor:
        return self._update.part(name, begin, end)


def theta_names(updates: Sequence[Update]) -> list[str]:
    """Names of θ. Raises ValueError where updates do not hold the same, or a Δ is missing."""
    names = sorted(name for name in updates[0].names if not name.startswith(DELTA))
    wanted = {*names, *(DELTA + name for name in names)}
    for update in updates:
        if different := wanted ^ set(update.names):
            raise ValueError(f"{min(different)}: not in every update, or in one of θ and Δ alone")
    return names


def similarities(updates: Sequence[Update], names: Sequence[str]) -> Matrix:
    """s_ij of equation (2), symmetric, 1 on the diagonal; the cosines are over all tensors together."""
    size = len(updates)
    dot = torch.zeros(size, size, dtype=torch.float64)
    for name in names:
        for i in range(size):
            mine = updates[i].tensor(DELTA + name).double().flatten()
            dot[i, i] += mine @ mine
            for j in range(i + 1, size):
                dot[i, j] += mine @ updates[j].tensor(DELTA + name).double().flatten()
    return [[_cosine(dot, min(i, j), max(i, j)) for j in range(size)] for i in range(size)]


def _cosine(dot: Tensor, i: int, j: int) -> float:
    if i == j:
        return 1.0
    norms = math.sqrt(float(dot[i, i]) * float(dot[j, j]))
    return min(1.0, max(0.0, float(dot[i, j]) / norms)) if norms > 0 else 0.0


def similarity_mix(i: int, s_i: Sequence[float], cases: Sequence[float], tau: float) -> list[float]:
    """Equations (3) and (4): [(1−a_i)·w_i1, …, a_i, …, (1−a_i)·w_iK]."""
    own = cases[i] / math.fsum(cases)
    # exp(s/τ) overflows at small τ: the largest exponent is taken out of numerator and denominator
    largest = max((s for j, s in enumerate(s_i) if j != i and cases[j] > 0), default=0.0)
    raw = [
        n * math.exp((s - largest) / tau) if j != i and n > 0 else 0.0
        for j, (n, s) in enumerate(zip(cases, s_i, strict=True))
    ]
    total = math.fsum(raw)
    if total == 0:
        return [1.0 if j == i else 0.0 for j in range(len(raw))]
    return [own if j == i else (1 - own) * value / total for j, value in enumerate(raw)]


def simplex_mix(s_i: Sequence[float], cases: Sequence[float], alpha: float) -> list[float]:
    """Equation (5)."""
    total = math.fsum(cases)
    return projected([n / total + s / (2 * alpha) for n, s in zip(cases, s_i, strict=True)])


def projected(values: Sequence[float]) -> list[float]:
    """The nearest point of the simplex {w ≥ 0, Σw = 1} (Held, Wolfe & Crowder 1974).

    max(0, v − t) with the threshold t at which the sum is 1.
    """
    above, threshold = 0.0, 0.0
    for count, value in enumerate(sorted(values, reverse=True), start=1):
        above += value
        if value - (above - 1) / count > 0:
            threshold = (above - 1) / count
    return [max(0.0, value - threshold) for value in values]


def mixed(updates: Sequence[Update], name: str, mix: Sequence[float]) -> Tensor:
    """Σ_j w_j·θ_j of one tensor; those without weight are not read."""
    parts = [(update, weight) for update, weight in zip(updates, mix, strict=True) if weight > 0]
    total = parts[0][0].tensor(name) * parts[0][1]
    for update, weight in parts[1:]:
        total.add_(update.tensor(name), alpha=weight)
    return total
