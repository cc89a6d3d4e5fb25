"""The ensemble of peers (`training.ensemble_peers`): other sites' models help to predict; none is mixed in.

Averaging weights asks that the models be alike; averaging predictions does not, and leaves the site's own
training alone. No byte more is moved: the models have come already. It costs memory (one model for each peer,
on the CPU and in each checkpoint) and, at prediction, one network more for each that takes part.

At each validation the choice is made anew, greedily (ensemble selection, Caruana et al. 2004): each held
model is scored alone once; then, the best first, one is let in if the mean validation Dice of the ensemble
rises by more than the standard error of the paired difference, both by patient (with a handful of them a
smaller gain is noise). The site's own model keeps half of the say. Where none helps, or there are fewer than
three patients to choose by, the site deploys its own model alone.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import Tensor, nn

from gossipseg.learn.deploy.ensemble import Ensemble
from gossipseg.learn.engine.model_state import cpu_copy
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.evaluation.evaluate import Scores
from gossipseg.learn.evaluation.paired import LEAST_PATIENTS, by_patient, paired_drop

MOST_MEMBERS = 8
"""Models of more peers are not held: the one that came first, of those that do not predict, leaves."""

WORTH_A_TRIAL = 0.5
"""A model whose own Dice is under this share of the site's is not tried: it would only cost time."""


@dataclass(slots=True)
class EnsembleMember:
    """A peer's model: its shared tensors, and this site's private ones, on the CPU."""

    hash: str
    weights: dict[str, Tensor]
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
    """The best of as many as were tried on the same cases, so rather too high."""
    members: tuple[str, ...] = ()
    """Peers whose models take part, in the order in which they were let in."""
    held: int = 0
    """Peers whose models were there to be chosen from."""
    left: str = ""
    """The peer whose model took part, and had to leave since."""
    patients: int | None = None
    """Whose validation cases have a Dice; None in the checkpoint of a version that chose by cases."""

    @property
    def reason(self) -> str:
        """In words, with the figures."""
        if self.left:
            return f"the model of {self.left} took part, and had to leave; the next validation chooses anew"
        if not self.held:
            return "no model of another site was there at the last validation"
        if self.dice is None or self.dice_ensemble is None:
            return "no validation case has a Dice to choose by"
        if self.patients is not None and self.patients < LEAST_PATIENTS:
            few = f"too few validation patients to choose by ({self.patients}; it takes {LEAST_PATIENTS})"
            return f"validation Dice {self.dice:.4f} alone; {few}"
        if not self.members:
            of = "the one model" if self.held == 1 else f"none of the {self.held} models"
            raises = "does not raise it" if self.held == 1 else "raises it"
            by = "by more than a standard error"
            return f"validation Dice {self.dice:.4f} alone; {of} of other sites {raises} {by}"
        names = ", ".join(self.members)
        return f"validation Dice {self.dice_ensemble:.4f} with the models of {names}, {self.dice:.4f} alone"


class PeerEnsemble:
    """The held models, those of them that predict until the next validation, and the last verdict."""

    def __init__(self, run: RunState) -> None:
        self._run = run
        self.members: dict[str, EnsembleMember] = {}
        """The newest of each peer, the one that came first in front."""
        self.predicting: dict[str, EnsembleMember] = {}
        """Those of the verdict, as they were judged: a newer one of the same peer must be judged first."""
        self.verdict = PeerVerdict()

    def take_in(self, frm: str, hash: str, model: nn.Module) -> None:
        """Hold `model`, as it came from the site `frm`, in place of an earlier one. It is copied."""
        self.members.pop(frm, None)
        self.members[frm] = EnsembleMember(hash, cpu_copy(model.state_dict()))
        if len(self.members) > MOST_MEMBERS:
            idle = [name for name in self.members if name not in self.predicting]
            del self.members[idle[0]]

    def holds(self, frm: str, hash: str) -> bool:
        """Whether this very model is here to be chosen."""
        return frm in self.members and self.members[frm].hash == hash

    def let_go(self, frm: str, hash: str | None = None) -> None:
        """Forget a peer's model, at once: it did harm, or its site is gone. `hash`: this one alone.

        If it predicts, this site's own model does so alone until the next validation.
        """
        if hash is None or self.holds(frm, hash):
            self.members.pop(frm, None)
        if frm in self.predicting and hash in (None, self.predicting[frm].hash):
            self.predicting = {}
            self.verdict = PeerVerdict(dice=self.verdict.dice, held=self.verdict.held, left=frm)
            self._run.history.dice_val = self.verdict.dice

    def keep_only(self, listed: Collection[str]) -> None:
        """Let the models go of sites that are no longer of the federation."""
        for frm in {*self.members, *self.predicting} - set(listed):
            self.let_go(frm)

    def judge(self, exchanging: nn.Module, scores: Scores, round: int) -> Scores:
        """Choose what is deployed from now on, and return its score. `scores`: of this site's EMA, on the
        validation split.
        """
        chosen: dict[str, EnsembleMember] = {}
        best, whose = scores, self._run.site.patients("validation")
        patients = len(by_patient([case.mean for case in scores.per_case], whose))
        promising = self._by_promise(exchanging, scores, round) if patients >= LEAST_PATIENTS else []
        for frm in promising:
            tried = {**chosen, frm: self.members[frm]}
            trial = self._run.score(self._with(exchanging, tried), "validation", round)
            if better(trial, best, whose):
                chosen, best = tried, trial
        deployed: Literal["own", "ensemble"] = "ensemble" if chosen else "own"
        held = len(self.members)
        self.predicting = chosen
        self.verdict = PeerVerdict(deployed, scores.mean, best.mean, tuple(chosen), held, patients=patients)
        return best

    def deployed(self, exchanging: nn.Module) -> nn.Module:
        """What the site evaluates and predicts with. `exchanging`: this site's EMA."""
        return self._with(exchanging, self.predicting) if self.predicting else exchanging

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

    def _with(self, exchanging: nn.Module, members: Mapping[str, EnsembleMember]) -> nn.Module:
        nets = [loaded(exchanging, member.weights) for member in members.values()]
        return Ensemble(exchanging, nets, self._run.settings.training.output)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values and CPU tensors."""
        return {
            "members": {frm: _plain(member) for frm, member in self.members.items()},
            "predicting": {frm: _plain(member) for frm, member in self.predicting.items()},
            "verdict": asdict(self.verdict),
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what state() gave; None: what was trained until now had no ensemble."""
        self.members, self.predicting, self.verdict = {}, {}, PeerVerdict()
        if state is not None:
            self.members = {frm: EnsembleMember(**member) for frm, member in state["members"].items()}
            self.predicting, told = predicting(state), state["verdict"]
            self.verdict = PeerVerdict(**{**told, "members": tuple(told["members"])})


def better(trial: Scores, best: Scores, patients: Sequence[str]) -> bool:
    """Whether the mean Dice over the patients scored both times is higher by more than one standard error.

    `patients`: whose each case is. Never with fewer than LEAST_PATIENTS.
    """
    drop = paired_drop([c.mean for c in best.per_case], [c.mean for c in trial.per_case], patients)
    error = drop.standard_error
    return drop.patients >= LEAST_PATIENTS and error is not None and -drop.mean > error


def predicting(state: Mapping[str, Any]) -> dict[str, EnsembleMember]:
    """The models that predict beside the site's own, out of what state() gave."""
    return {frm: EnsembleMember(**member) for frm, member in state["predicting"].items()}


def _plain(member: EnsembleMember) -> dict[str, Any]:
    return {field.name: getattr(member, field.name) for field in fields(EnsembleMember)}


def loaded(like: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network like `like`, on its device, with other weights, in evaluation mode."""
    net = copy.deepcopy(like)
    net.load_state_dict(dict(weights))
    return net.eval()
