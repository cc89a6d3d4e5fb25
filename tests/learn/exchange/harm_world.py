"""Eight small trainings on synthetic images that swap, one of which does harm: for the rule of harm.

What belongs here: the sites, their images, their swaps. The rule, the mixing and the setting aside are the
product's own. What does not: judgements (they are the tests').
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossipseg.core.gossip.set_aside import SetAside
from gossipseg.learn.exchange.harm import Harm, change_by_patient
from gossipseg.learn.exchange.swap import add_difference

SIDE, CLASSES, PATIENTS, STEPS, BATCH = 12, 3, 9, 3, 4
HARMFUL = "h"
Spoil = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )


def images(n: int, contrast: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n squares (class 1) with a spot (class 2) within, in noise, each normalised as the product does it.

    A site's scanner has a contrast of its own: how bright class 1 is between the two others.
    """
    label = torch.zeros(n, SIDE, SIDE, dtype=torch.long)
    for one in label:
        y, x, size = (int(torch.randint(k, k + 4, (), generator=generator)) for k in (1, 1, 4))
        one[y : y + size, x : x + size] = 1
        one[y + size // 2, x + 1 : x + size - 1] = 2
    noisy = torch.tensor([0.0, contrast, 2.0])[label] + 0.4 * torch.randn(n, SIDE, SIDE, generator=generator)
    mean, std = noisy.mean(dim=(1, 2), keepdim=True), noisy.std(dim=(1, 2), keepdim=True)
    return ((noisy - mean) / std)[:, None], label


@dataclass
class HarmSite:
    """A site with its training and what it thinks of its peers."""

    name: str
    cases: int
    model: nn.Module
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    generator: torch.Generator
    harm: Harm = field(default_factory=Harm)
    aside: SetAside = field(default_factory=SetAside)
    named: list[tuple[int, str]] = field(default_factory=list)
    """(round, peer) of each time that a peer was set aside."""

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.003)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def snapshot(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.weights().items()}

    def steps(self) -> None:
        for _ in range(STEPS):
            chosen = torch.randint(len(self.train[1]), (BATCH,), generator=self.generator)
            loss = F.cross_entropy(self.model(self.train[0][chosen]), self.train[1][chosen])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def losses(self) -> list[float]:
        """Validation NLL by case, one case a patient."""
        found = F.cross_entropy(self.model(self.validation[0]), self.validation[1], reduction="none")
        return found.mean(dim=(1, 2)).tolist()

    def mix(self, peer: str, theirs: dict[str, Tensor], own: dict[str, Tensor], w: float, round: int) -> None:
        before = self.losses()
        add_difference(self.weights(), theirs, own, w)
        change = change_by_patient(before, self.losses(), [str(p) for p in range(PATIENTS)])
        if self.harm.note(peer, change) and not self.aside.add(peer, round, 7):
            self.named.append((round, peer))


def flipped(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The model as it is: its maker trains on wrong labels."""
    return weights


def noisy(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The model in as much noise as it passes admission with."""
    return {
        name: t + torch.randn(t.shape, generator=generator) * t.square().mean().sqrt()
        for name, t in weights.items()
    }


class HarmWorld:
    """Seven honest sites and one that does harm."""

    def __init__(self, seed: int, spoil: Spoil, *, contrasts: Sequence[float]) -> None:
        self.rng, self.spoil, self.round = random.Random(seed), spoil, 0
        torch.manual_seed(seed)
        initial = network().state_dict()
        self.sites: dict[str, HarmSite] = {}
        for i, name in enumerate("abcdefgh"):
            generator = torch.Generator().manual_seed(1000 * seed + i)
            model = network()
            model.load_state_dict(initial)
            cases = self.rng.randrange(8, 25)
            train = images(cases, contrasts[i], generator)
            if name == HARMFUL and spoil is flipped:
                train = train[0], CLASSES - 1 - train[1]
            validation = images(PATIENTS, contrasts[i], generator)
            self.sites[name] = HarmSite(name, cases, model, train, validation, generator)

    def run(self, rounds: int) -> None:
        for self.round in range(1, rounds + 1):
            pairs = self._pairs() if self.round > 2 else []
            snapshots = {name: self._sent(name) for pair in pairs for name in pair}
            for site in self.sites.values():
                site.steps()
            for one, two in pairs:
                for me, peer in ((one, two), (two, one)):
                    own, theirs = self.sites[me], self.sites[peer]
                    if me != HARMFUL or self.spoil is flipped:
                        w = theirs.cases / (own.cases + theirs.cases)
                        own.mix(peer, snapshots[peer], snapshots[me], w, self.round)

    def _sent(self, name: str) -> dict[str, Tensor]:
        site = self.sites[name]
        snapshot = site.snapshot()
        return self.spoil(snapshot, site.generator) if name == HARMFUL else snapshot

    def _pairs(self) -> list[tuple[str, str]]:
        """One swap a site, where a peer is free that neither of the two has set aside."""
        free, pairs = list(self.sites), []
        self.rng.shuffle(free)
        while free:
            me = free.pop()
            fit = [p for p in free if not self._aside(me, p) and not self._aside(p, me)]
            if fit:
                peer = self.rng.choice(fit)
                free.remove(peer)
                pairs.append((me, peer))
        return pairs

    def _aside(self, me: str, peer: str) -> bool:
        return peer in self.sites[me].aside.now(self.round)

    def named(self) -> list[tuple[int, str, str]]:
        """(round, by whom, who) of each time that an honest site set a peer aside."""
        return [(r, s.name, peer) for s in self.sites.values() if s.name != HARMFUL for r, peer in s.named]
