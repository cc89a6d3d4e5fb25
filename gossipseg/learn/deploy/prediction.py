"""What a site predicts with: the averages (EMA) of its personal and its shared model, and of peers' personal
models, mixed.

The mix is chosen anew at each validation, by the rules of choice.py. A personal model that began as a copy of
the shared one has no say until it has trained for a while. Nor has one with a network of its own, where the
site took the shared model over. At a site that does not annotate all classes the shared model predicts alone:
the personal one has learned nothing of the others, and no score of this site would show it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from gossipseg.learn.deploy.candidates import ValidationMembers
from gossipseg.learn.deploy.choice import (
    GREEDY_PATIENTS,
    OF_PEER,
    OWN_MODELS,
    SHARES,
    Mix,
    choose,
    counted,
    limited,
    share_of_personal,
    shared_alone,
)
from gossipseg.learn.deploy.peers import PeerModel, PeerModels
from gossipseg.learn.engine.checkpoint import digest
from gossipseg.learn.engine.model_state import cpu_copy
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.evaluation.evaluate import Scores, summarise
from gossipseg.learn.evaluation.kept import KeptPredictions
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.learn.evaluation.paired import by_patient
from gossipseg.learn.settings import WorkerSettings

LEAST_ROUNDS_OF_A_COPY = 5
"""Rounds that a personal model trains before it predicts, where the shared one was taken over."""


PARTIAL = "this site does not annotate all classes, and its personal model has not learned the others"


def young(rounds: int) -> str:
    """Why a personal model beside a shared one that was taken over has no say yet."""
    return f"the personal model has trained {rounds} of {LEAST_ROUNDS_OF_A_COPY} rounds since it began"


def kept_predictions(settings: WorkerSettings) -> KeptPredictions:
    """The site's folder of predictions on validation cases."""
    return KeptPredictions(Path(settings.spec.state_dir) / "predictions")


class Prediction:
    """The present mix, and how it is chosen."""

    def __init__(self, run: RunState) -> None:
        self._run = run
        self.mix = Mix({"personal": 0.5, "shared": 0.5})
        if not run.settings.annotates_all:
            self.mix = shared_alone(PARTIAL)
        self.peers = PeerModels()
        self._chosen_by: str | None = None
        """Digest of the cases by which the mix was chosen and scored; None: unknown."""
        self.stale = False
        """Whether the mix was chosen among other models, or by other cases, than there are now."""
        self._kept = kept_predictions(run.settings)
        self._kept.sweep_cases(run.site.case_ids("validation"))

    @property
    def looks_wider(self) -> bool:
        """Whether there are patients enough to choose among more than two models."""
        return len(set(self._run.site.told_patients("validation"))) >= GREEDY_PATIENTS

    def judge(
        self, personal: nn.Module, shared: nn.Module, round: int, *, trained: int | None
    ) -> tuple[Scores, Scores]:
        """Choose the mix from now on; its scores over the validation split, and the shared model's.

        `trained`: rounds that the personal model has trained, where it needs some before it has a say; None:
        it needs none.
        """
        why = "" if self._run.settings.annotates_all else PARTIAL
        if not why and trained is not None and trained < LEAST_ROUNDS_OF_A_COPY:
            why = young(trained)
        if why:
            scores = self.shared_alone(shared, round, why)
            return scores, scores
        patients = self._run.site.patients("validation")
        n = counted(self._run.site.told_patients("validation"))
        by_best = {best: share_of_personal(best, n) for best in SHARES}
        members = self._members(personal, shared, round) if self.looks_wider else None
        if members is None:
            self._kept.sweep((), ())
            found = self._run.score_pair(personal, shared, round, SHARES, by_best.values())
        else:
            names = {personal: "personal", shared: "shared"}
            found = self._run.score_pair(
                personal,
                shared,
                round,
                SHARES,
                by_best.values(),
                lambda net, item: members.logits(names[net], item),
                members.see,
            )
        alone = [case.mean for case in found.personal]
        shared_scores = [case.mean for case in found.shared]
        mixes = {best: [case.mean for case in found.mixes[share]] for best, share in by_best.items()}
        most = self._run.settings.inference.max_members
        self.mix, best = choose(found.losses, alone, shared_scores, mixes, patients, members, most)
        cases = found.mixes[by_best[best]]
        if members is not None:
            self.mix = replace(self.mix, peers=self._peers_alone(members, patients))
            cases = members.scores_of(self.mix.weights) or cases
        self._now(round)
        single = {"personal": found.personal, "shared": found.shared}
        cases = single.get(self.mix.name, cases)
        task = self._run.settings.task
        return summarise(cases, task), summarise(found.shared, task)

    def _members(self, personal: nn.Module, shared: nn.Module, round: int) -> ValidationMembers:
        """All models that may predict. Predictions of others are deleted."""
        run = self._run
        held = self._held() if run.settings.inference.max_members > len(OWN_MODELS) else []
        nets: dict[str, Callable[[], nn.Module]] = {"personal": lambda: personal, "shared": lambda: shared}
        keys = {
            "personal": digest(cpu_copy(personal.state_dict())),
            "shared": digest(cpu_copy(shared.state_dict())),
        }
        for peer in held:
            nets[peer.member], keys[peer.member] = self._maker(peer), peer.hash
        how = self._how()
        keys = {member: f"{key} {how}" for member, key in keys.items()}
        self._kept.sweep(keys.values(), run.site.case_ids("validation"))
        return ValidationMembers(run, round, nets, keys, self._kept)

    def _how(self) -> str:
        """What a prediction depends on beside weights and image."""
        settings = self._run.settings
        training, networks = settings.training, (settings.network, settings.personal_network)
        return repr((settings.task.patch_size, training.window_overlap, training.output, networks))

    def _maker(self, peer: PeerModel) -> Callable[[], nn.Module]:
        return lambda: peer.net(self._run.settings, self._run.compute)

    def _peers_alone(self, members: ValidationMembers, patients: tuple[str, ...]) -> dict[str, float | None]:
        compared = [member for member in members.members if member.startswith(OF_PEER)]
        means = {member: by_patient(members.alone(member), patients) for member in compared}
        return {member: statistics.fmean(found) if found else None for member, found in means.items()}

    def _held(self) -> list[PeerModel]:
        return [peer for _, peer in sorted(self.peers.held.items())]

    def drop_peers(self, sites: Mapping[str, str]) -> bool:
        """Keep no peers' models but these, site → hash; whether the mix has lost a member by it.

        What such a member had in the mix goes to the others until the next validation.
        """
        self.peers.keep(sites)
        return self._limit()

    def _limit(self) -> bool:
        """Leave out of the mix what may not predict any more; whether there was such a member."""
        most = self._run.settings.inference.max_members
        before, self.mix = self.mix, limited(self.mix, {peer.member for peer in self._held()}, most)
        return self.mix is not before

    def _now(self, round: int) -> None:
        """The mix has been chosen now, among the models and by the cases that are there."""
        self.mix = replace(self.mix, round=round)
        self._chosen_by, self.stale = self._cases(), False

    def _cases(self) -> str:
        return digest([*self._run.site.seen(), self._how()])

    def shared_alone(self, shared: nn.Module, round: int, why: str) -> Scores:
        """Predict with the shared model alone from now on; its scores over the validation split."""
        scores = self._run.score(shared, "validation", round)
        patients = self._run.site.patients("validation")
        self.mix = shared_alone(why, [case.mean for case in scores.per_case], patients)
        self._now(round)
        return scores

    def begins_anew(self, why: str) -> None:
        """Predict with the shared model alone until the next validation."""
        self.mix = shared_alone(why)

    def not_validated(self) -> Mix:
        """The mix, which no validation has scored with the models that are there now."""
        if self.mix.deployed is not None:
            self.mix = replace(self.mix, deployed=None, standard_error=None)
        return self.mix

    def net(self, personal: nn.Module, shared: nn.Module) -> nn.Module:
        """What the site evaluates and predicts with."""
        peers = {peer.member: peer for peer in self._held()}
        run = self._run
        nets = {m: peers[m].net(run.settings, run.compute) for m in self.mix.weights if m in peers}
        return mixed_net(
            self.mix, {"personal": personal, "shared": shared, **nets}, run.settings.training.output
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"mix": asdict(self.mix), "mix_chosen_by": self._chosen_by, "peers": self.peers.state()}

    def load(self, state: Mapping[str, Any], listed: Collection[str] | None) -> None:
        """Go on from what state() gave. `listed`: sites whose models may still be held; None: all."""
        unlearned = False
        if "mix" in state:
            told = Mix(**state["mix"])
            self.mix = learned(told, self._run.settings)
            unlearned = self.mix is not told
        self.peers.load(state.get("peers", {}))
        held = self.peers.held.items()  # a site may have been removed while this one was down
        lost = self.drop_peers({s: p.hash for s, p in held if listed is None or s in listed})
        scored = self.mix.alone is not None or self.mix.shared is not None
        self._chosen_by = state.get("mix_chosen_by")
        others = self._chosen_by is not None and self._chosen_by != self._cases()
        self.stale = lost or others or unlearned or (scored and self.mix.deployed is None)


def learned(mix: Mix, settings: WorkerSettings) -> Mix:
    """The mix itself, or the shared model alone where the site does not annotate all classes now."""
    return mix if settings.annotates_all or mix.name == "shared" else shared_alone(PARTIAL)


def mixed_net(mix: Mix, nets: Mapping[str, nn.Module], output: str) -> nn.Module:
    """The network that a mix stands for. `nets`: by member; `output`: training.output."""
    members = {name: weight for name, weight in mix.weights.items() if weight > 0}
    if len(members) == 1:
        return nets[next(iter(members))]
    return Mixture([nets[name] for name in members], list(members.values()), output)
