"""The ensemble of peers (`training.ensemble_peers`): other sites' models help to predict; none is mixed in.

What belongs here: the newest model of each peer, and the choice of those that take part in what is deployed.
What must not: how predictions are averaged (ensemble.py), when a visitor comes and goes (reception.py), when
a round closes (closing.py).

Averaging weights asks that the models be alike; averaging predictions does not, and leaves the site's own
training alone. No byte more is moved: the models have come already. It costs memory (one model for each peer,
on the CPU and in each checkpoint) and, at prediction, one network more for each that takes part.

At each validation the choice is made anew, greedily (ensemble selection, Caruana et al. 2004): each held
model is scored alone once; then, the best first, one is let in if the mean validation Dice of the ensemble
rises. The site's own model keeps half of the say. Where none helps, the site deploys its own model alone.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from gossipseg.learn.ensemble import Ensemble
from gossipseg.learn.evaluate import Scores
from gossipseg.learn.run import Run
from gossipseg.learn.student import cpu_copy

MOST_MEMBERS = 8
"""Models of more peers are not held: the one that came first leaves."""

WORTH_A_TRIAL = 0.5
"""A model whose own Dice is under this share of the site's is not tried: it would only cost time."""


@dataclass(slots=True)
class Member:
    """A peer's newest model: its shared tensors, and this site's private ones, on the CPU."""

    weights: dict[str, Tensor]
    round: int
    """Of this site, in which it came."""
    scored: bool = False
    dice: float | None = None
    """Its own mean validation Dice here, once `scored`; None without a case."""


@dataclass(frozen=True, slots=True)
class PeerVerdict:
    """What is deployed, and the validation behind it."""

    deployed: Literal["own", "ensemble"] = "own"
    dice: float | None = None
    """Mean validation Dice of this site's model alone."""
    dice_ensemble: float | None = None
    members: tuple[str, ...] = ()
    """Peers whose models take part, in the order in which they were let in."""
    held: int = 0
    """Peers whose models were there to be chosen from."""

    @property
    def reason(self) -> str:
        """In words, with the figures."""
        if not self.held:
            return "no model of another site was there at the last validation"
        if self.dice is None or self.dice_ensemble is None:
            return "no validation case has a Dice to choose by"
        if not self.members:
            of = "the one model" if self.held == 1 else f"none of the {self.held} models"
            raises = "does not raise it" if self.held == 1 else "raises it"
            return f"validation Dice {self.dice:.4f} alone; {of} of other sites {raises}"
        names = ", ".join(self.members)
        return f"validation Dice {self.dice_ensemble:.4f} with the models of {names}, {self.dice:.4f} alone"


class PeerEnsemble:
    """The held models, and the last verdict."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.members: dict[str, Member] = {}
        self.verdict = PeerVerdict()

    def take_in(self, frm: str, model: nn.Module, round: int) -> None:
        """Hold `model`, as it came from the site `frm`, in place of an earlier one. It is copied.

        One that takes part in what is deployed goes on doing so until the next validation.
        """
        self.members.pop(frm, None)
        self.members[frm] = Member(cpu_copy(model.state_dict()), round)
        while len(self.members) > MOST_MEMBERS:
            self.let_go(next(iter(self.members)))

    def let_go(self, frm: str) -> None:
        """Forget a peer's model, at once: it did harm, or there is no room."""
        self.members.pop(frm, None)
        if frm in self.verdict.members:
            self.verdict = PeerVerdict()

    def keep_only(self, listed: Collection[str]) -> None:
        """Let the models go of sites that are no longer of the federation."""
        for frm in set(self.members) - set(listed):
            self.let_go(frm)

    def judge(self, exchanging: nn.Module, scores: Scores, round: int) -> Scores:
        """Choose what is deployed from now on, and return its score. `scores`: of this site's EMA, on the
        validation split.
        """
        chosen: list[str] = []
        best = scores
        for frm in self._by_promise(exchanging, scores, round):
            trial = self._run.score(self._with(exchanging, [*chosen, frm]), "validation", round)
            if trial.mean is not None and best.mean is not None and trial.mean > best.mean:
                chosen.append(frm)
                best = trial
        deployed: Literal["own", "ensemble"] = "ensemble" if chosen else "own"
        self.verdict = PeerVerdict(deployed, scores.mean, best.mean, tuple(chosen), len(self.members))
        return best

    def deployed(self, exchanging: nn.Module) -> nn.Module:
        """What the site evaluates and predicts with. `exchanging`: this site's EMA."""
        members = list(self.verdict.members)
        return self._with(exchanging, members) if members else exchanging

    def _by_promise(self, exchanging: nn.Module, scores: Scores, round: int) -> list[str]:
        """The peers worth a trial, the one with the best model first."""
        for member in self.members.values():
            if not member.scored:
                net = loaded(exchanging, member.weights)
                member.dice = self._run.score(net, "validation", round).mean
                member.scored = True
        if scores.mean is None:
            return []
        found = {frm: m.dice for frm, m in self.members.items() if m.dice is not None}
        worth = [frm for frm, dice in found.items() if dice >= WORTH_A_TRIAL * scores.mean]
        return sorted(worth, key=lambda frm: (-found[frm], frm))

    def _with(self, exchanging: nn.Module, frm: list[str]) -> nn.Module:
        nets = [loaded(exchanging, self.members[name].weights) for name in frm]
        return Ensemble(exchanging, nets, self._run.setup.training.output)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values and CPU tensors."""
        members = {
            frm: {"weights": m.weights, "round": m.round, "scored": m.scored, "dice": m.dice}
            for frm, m in self.members.items()
        }
        return {"members": members, "verdict": asdict(self.verdict)}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what state() gave; None: what was trained until now had no ensemble."""
        members = state["members"] if state is not None else {}
        self.members = {frm: Member(**member) for frm, member in members.items()}
        self.verdict = verdict_from(state) if state is not None else PeerVerdict()


def verdict_from(state: Mapping[str, Any]) -> PeerVerdict:
    """The verdict in what state() gave."""
    return PeerVerdict(**{**state["verdict"], "members": tuple(state["verdict"]["members"])})


def loaded(like: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network like `like`, on its device, with other weights, in evaluation mode."""
    net = copy.deepcopy(like)
    net.load_state_dict(dict(weights))
    return net.eval()
