"""All models that may predict together, on a site's validation cases: what the rules of choice.py ask for.

Each model predicts each case once (evaluation/kept.py). A greedy choice then needs no more of a case than the
log-likelihoods of its label, one number a voxel; of large cases a fixed random part stands for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gossipseg.learn.data.dataset import Item
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.evaluation.evaluate import CaseScore
from gossipseg.learn.evaluation.kept import KeptPredictions
from gossipseg.learn.evaluation.mixture import mixed
from gossipseg.learn.evaluation.paired import CaseScores

MOST_VALUES, LEAST_VALUES = 1 << 26, 1 << 12
"""Log-likelihoods in memory, of all members and cases together; and of one member and case."""


class ValidationMembers:
    """Candidates of choice.py. `nets`: member → its network, made when it is asked for; `keys`: member → hash
    of its weights. Both begin with `personal` and `shared`."""

    def __init__(
        self,
        run: RunState,
        round: int,
        nets: Mapping[str, Callable[[], nn.Module]],
        keys: Mapping[str, str],
        kept: KeptPredictions,
    ) -> None:
        self._run, self._round, self._make, self._keys, self._kept = run, round, nets, keys, kept
        self._nets: dict[str, nn.Module] = {}
        self._log_p: list[dict[str, Tensor]] = []
        self._scores: dict[str, list[CaseScore]] = {name: [] for name in nets}
        self.mixes: dict[tuple[tuple[str, float], ...], list[CaseScore]] = {}
        """Scores by case of what dice() was asked for."""
        cases = len(run.site.patients("validation"))
        self._values = max(LEAST_VALUES, MOST_VALUES // max(1, cases * len(nets)))

    @property
    def members(self) -> Sequence[str]:
        """Their names."""
        return tuple(self._make)

    def logits(self, member: str, item: Item) -> Tensor:
        """What a member predicts; kept, or computed now."""
        found = self._kept.get(self._keys[member], item.case.id, item.image)
        if found is None:
            if member not in self._nets:
                self._nets[member] = self._make[member]()
            found = self._run.site.predict(self._nets[member], item)
            self._kept.put(self._keys[member], item.case.id, item.image, found)
        return found

    def see(self, item: Item, label: Tensor, p: Tensor, t: Tensor) -> None:
        """Take in a case, with the logits of the personal and of the shared model."""
        site, log_p = self._run.site, {}
        part: Tensor | None = None
        for member in self._make:
            logits = {"personal": p, "shared": t}.get(member)
            if logits is None:
                logits = self.logits(member, item)
                self._scores[member].append(site.score_logits(item, label, logits))
            values = site.log_likelihoods(logits, label)
            if values.numel() > self._values:
                part = self._part(values.numel()) if part is None else part
                values = values[part]
            log_p[member] = values
        self._log_p.append(log_p)

    def _part(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.randperm(count, generator=generator)[: self._values]

    def loss(self, counts: Mapping[str, int]) -> float:
        """Mean NLL over the cases of the members' mean, each counted that often; infinite without a case."""
        taken = [name for name, n in counts.items() if n]
        weights = torch.tensor([counts[name] for name in taken], dtype=torch.float64)
        shares = (weights / weights.sum()).log().float()[:, None]
        found = [
            -torch.logsumexp(torch.stack([case[name] for name in taken]) + shares, 0).double().mean()
            for case in self._log_p
            if case["personal"].numel()
        ]
        return float(torch.stack(found).mean()) if found else float("inf")

    def dice(self, weights: Mapping[str, float]) -> CaseScores:
        """Dice by case of what these weights predict. Raises what the gate raises, between two cases."""
        run, total = self._run, len(self._log_p)
        on_progress = run.scoring("validation", self._round)
        members = {name: weight for name, weight in weights.items() if weight > 0}
        scores: list[CaseScore] = []
        with run.site.scoring():
            for item, label in run.site.labelled("validation"):
                parts = (self.logits(name, item) for name in members)
                logits = mixed(parts, list(members.values()), run.settings.training.output)
                scores.append(run.site.score_logits(item, label, logits))
                on_progress(len(scores) / max(1, total))
        self.mixes[_key(weights)] = scores
        return [case.mean for case in scores]

    def scores_of(self, weights: Mapping[str, float]) -> list[CaseScore] | None:
        """What dice() has found for these weights; None where it was not asked."""
        return self.mixes.get(_key(weights))

    def alone(self, member: str) -> CaseScores:
        """Dice by case of a peer's model alone."""
        return [case.mean for case in self._scores[member]]


def _key(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(weights.items()))
