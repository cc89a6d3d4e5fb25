"""A whole federation in one process and one thread: sites over a network in memory, in virtual time."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gossipseg import config
from gossipseg.bridge.node_setup import node_setup
from gossipseg.config.exchange import exchange_times
from gossipseg.core.node import NodeState
from gossipseg.core.params import MembershipParams, RoundsParams
from gossipseg.errors import LocalError
from gossipseg.lab.plan.choices import attack_of
from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.lab.plan.splits import write_list
from gossipseg.lab.report.pictures import Pictures
from gossipseg.lab.simulation import virtual_time
from gossipseg.lab.simulation.adversary import FlippedLabels, spoiler
from gossipseg.lab.simulation.durations import STEP_S, Durations
from gossipseg.lab.simulation.keys import RunKeys
from gossipseg.lab.simulation.personal_record import record_of
from gossipseg.lab.simulation.pretrained import lend
from gossipseg.lab.simulation.site import LabSite
from gossipseg.lab.simulation.training import DataCache, Progress, Training, case_rows, make_spec, mean_hd95
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.evaluation.scoring import Scores, mean_of
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, DataParams, WorkerSpec
from gossipseg.nets.params import NetworkParams
from gossipseg.store import ModelStore
from gossipseg.wire.memory import MemoryNetwork, MemoryTransport
from gossipseg.wire.transport import PeerEndpoint

DELAY_S = (0.005, 0.05)
"""Delay of a message or a chunk of a model, as in a wide-area network."""
PATIENCE = 50.0
"""Longest duration of a run, as a multiple of what its slowest site needs alone. A longer run has failed."""
LAST_FETCHES = 20.0
"""Most rounds' time in which the last personal models are fetched, once all sites have finished."""
TAIL = 0.1
"""`dice_val_tail` is the mean over the last tenth of the rounds."""


def run(plan: RunPlan, cache: DataCache, progress: Progress) -> list[dict[str, Any]]:
    """The rows of results.json of one run, a row per site. Raises ConfigError, DataError, LocalError."""
    with tempfile.TemporaryDirectory(prefix="gossiplab-") as folder:
        federation = _Federation(plan, Path(folder), cache, progress)
        virtual_time.run(federation.train())
        return federation.rows()


class _Federation:
    """The sites of one run."""

    def __init__(self, plan: RunPlan, folder: Path, cache: DataCache, progress: Progress) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._settings = plan.parsed()
        self._network = MemoryNetwork(plan.seed, delay_s=DELAY_S)
        self._keys = RunKeys(plan.sites, plan.seed)
        self._away: dict[str, int] = {}
        self._paces: dict[str, Durations] = {}
        self._sites: dict[str, LabSite] = {}
        self._specs = {name: self._spec(name, Path(data)) for name, data in plan.sites.items()}
        self._trainings = {
            name: Training(
                spec,
                cache,
                progress,
                equal_evaluations=plan.equal_evaluations,
                record=record_of(plan, spec),
            )
            for name, spec in self._specs.items()
        }
        labels = len(self._settings.task.labels)
        for name, attack in plan.adversaries.items():
            if attack_of(attack)[0] == "label_flipped":
                self._trainings[name].trainer.site.feed(lambda batches: FlippedLabels(batches, labels))

    def _spec(self, site: str, data: Path) -> WorkerSpec:
        own = self._folder / site
        own.mkdir(parents=True)
        if self._plan.pseudolabels and self._settings.algorithm.name == ONE_SHOT_ALGORITHM:
            shared = Path(self._plan.pseudolabels)
            shared.mkdir(parents=True, exist_ok=True)
            (own / shared.name).symlink_to(shared)  # kept by content: every run may use every other's
        params = kept(self._plan.data(site), site, self._plan.kept_cases.get(site), own)
        lend(self._settings.network, data, Path(params.path))
        budget = self._plan.budget(site)
        if network := self._plan.personal_networks.get(site):
            lend(NetworkParams(**network), data, Path(params.path))
        return make_spec(self._settings, site, params, own, budget, self._plan.device, network)

    # ------------------------------------------------------------ training

    async def train(self) -> None:
        """Run every site to its last round. Raises an error that would end a site's shell."""
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sites = {name: self._site(name) for name in self._plan.sites}
        everybody = asyncio.ensure_future(self._lives())
        either: set[asyncio.Future[None]] = {everybody, self._failed}
        try:
            async with asyncio.timeout(self._limit_s()):
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if self._failed.done():
                    self._failed.result()
                await everybody
        except TimeoutError:
            late = [name for name, site in self._sites.items() if not site.finished.is_set()]
            raise LocalError(
                f"run {self._plan.key}: {', '.join(late)} did not reach the last round: this is a bug."
            ) from None
        finally:
            everybody.cancel()
            await asyncio.gather(everybody, return_exceptions=True)
            self._bytes = {name: self._traffic(site) for name, site in self._sites.items()}
            for site in self._sites.values():
                await site.close()

    async def _lives(self) -> None:
        await asyncio.gather(*(self._life(site) for site in self._sites.values()))
        end_s = asyncio.get_running_loop().time() + LAST_FETCHES * self._round_s
        while asyncio.get_running_loop().time() < end_s:
            if not any(site.node.wants_personal for site in self._sites.values()):
                break
            await asyncio.sleep(self._round_s / 10)
        await asyncio.sleep(self._round_s / 10)  # what came last is taken in

    async def _life(self, site: LabSite) -> None:
        await asyncio.sleep((self._plan.late_join.get(site.name, 1) - 1) * self._round_s)
        await site.start()
        await site.finished.wait()

    @property
    def _round_s(self) -> float:
        return self._settings.training.steps_per_round * STEP_S

    def _limit_s(self) -> float:
        slowest = max(self._plan.speed.values(), default=1.0)
        return PATIENCE * self._plan.rounds * self._round_s * slowest

    def _site(self, name: str) -> LabSite:
        plan, training = self._plan, self._trainings[name]
        peers = {s: PeerEndpoint(s, _address(s)) for s in plan.sites}
        contract = config.contract(self._settings, training.trainer.network_signature)
        pace = self._paces[name] = Durations(
            name,
            plan.seed,
            slowness=plan.speed.get(name, 1.0),
            steps_per_round=self._settings.training.steps_per_round,
            dropout=plan.site_dropout,
            away=lambda seconds: self._vanish(name, seconds),
        )
        kind, times = attack_of(plan.adversaries.get(name, ""))
        return LabSite(
            self._node(name, contract),
            training,
            MemoryTransport(self._network, name, listen=_address(name), peers=peers),
            ModelStore(self._folder / name / "models"),
            pace,
            contract,
            self._keys,
            transfer_timeout_s=self._settings.gossip.transfer_timeout_s,
            exchange=self._settings.algorithm.exchange,
            swaps=config.swaps(self._settings),
            broke=self._break,
            spoil=spoiler(kind, plan.seed) if kind else None,
            times=times,
        )

    def _node(self, name: str, contract: tuple[tuple[str, str], ...]) -> NodeState:
        plan, settings = self._plan, self._settings
        setup = node_setup(
            settings,
            name,
            address=_address(name),
            sites={s: _address(s) for s in plan.sites if s != name},
            contract=contract,
            rounds=plan.budget(name),
            rng=random.Random(f"{plan.seed}/{name}/node"),
            sign=self._keys.signer(name),
            membership=membership_in(self._round_s),
            rounds_params=self._rounds_params(),
            strict=True,
        )
        return NodeState(setup)

    def _rounds_params(self) -> RoundsParams:
        """A coordinator that waits for the slowest site, but not for an absent one."""
        rounds = exchange_times(self._settings).longest
        turn_s = rounds * self._round_s * max(self._plan.speed.values(), default=1.0)
        return replace(
            self._settings.rounds,
            deadline_s=2 * turn_s,
            patience_s=self._round_s,
            alone_after_s=8 * turn_s,
            poll_interval_s=self._round_s / 20,
            request_timeout_s=self._round_s / 4,
        )

    def _break(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    # ------------------------------------------------------------ absences

    def _vanish(self, name: str, seconds: float) -> None:
        self._away[name] = self._away.get(name, 0) + 1
        self._cut()
        asyncio.get_running_loop().call_later(seconds, self._return, name)

    def _return(self, name: str) -> None:
        self._away[name] -= 1
        self._cut()

    def _cut(self) -> None:
        self._network.partition(*([_address(n)] for n, times in self._away.items() if times))

    # ------------------------------------------------------------ the result

    def _traffic(self, site: LabSite) -> tuple[int, int]:
        """(out, in): bytes of messages and models together."""
        with_each = [site.transport.traffic(other) for other in self._plan.sites if other != site.name]
        return sum(t.bytes_out for t in with_each), sum(t.bytes_in for t in with_each)

    def rows(self) -> list[dict[str, Any]]:
        """Score every honest site's deployment model on its own test cases."""
        return [self._row(name) for name in self._plan.sites if name not in self._plan.adversaries]

    def _row(self, name: str) -> dict[str, Any]:
        training, site, plan = self._trainings[name], self._sites[name], self._plan
        self._progress(0, f"testing {name}")
        pictures = Pictures(Path(plan.pictures), plan.key, name) if plan.pictures else None
        scores = training.test(self._specs[name], pictures)
        out_bytes, in_bytes = self._bytes[name]
        node = site.node
        others = [s for s in plan.sites if s != name]
        return {
            **row(plan, name, scores, training, training.curve),
            **training.members(),
            "rounds": node.round,
            "bytes_out": out_bytes,
            "bytes_in": in_bytes,
            "model_bytes_out": site.moved.bytes_out,
            "model_bytes_in": site.moved.bytes_in,
            "personal_bytes_out": site.moved.personal_out,
            "personal_bytes_in": site.moved.personal_in,
            "sent": sum(site.moved.sent_to.values()),
            "sent_to": dict(sorted(site.moved.sent_to.items())),
            "merged": _taken_in(node) + site.moved.commons,
            "merged_from": {s: n for s in others if (n := _taken_in(node, s))},
            **({"swaps": swap_counts(node)} if config.swaps(self._settings) else {}),
            "left_out": site.moved.left_out,
            "virtual_seconds": [round(site.began_s, 3), round(site.ended_s, 3)],
            "reverted": node.count("reverted"),
            "absences": self._paces[name].absences,
            "notes": dict(sorted(site.moved.notes.items())),
            "warnings": site.warnings,
            **({"similarity": site.similarity} if site.similarity else {}),
        }


def row(
    plan: RunPlan, site: str, scores: Scores, training: Training, curve: list[tuple[int, float | None]]
) -> dict[str, Any]:
    """The learning figures that every algorithm's row has."""
    validated = [dice for _, dice in curve if dice is not None]
    first = plan.rounds - max(1, round(TAIL * plan.rounds)) + 1 if curve else 0
    shift = plan.rounds - curve[-1][0] if curve else 0  # a late joiner's own rounds end with the others'
    tail = [dice for number, dice in curve if number + shift >= first and dice is not None]
    return {
        "run": plan.key,
        "algorithm": plan.label,
        "seed": plan.seed,
        "split": plan.split,
        "site": site,
        "cases_training": training.trainer.site.splits["training"],
        "dice_test": scores.mean,
        "dice_test_per_class": dict(scores.per_class),
        "dice_val": validated[-1] if validated else None,
        "dice_val_tail": statistics.fmean(tail) if tail else None,
        "hd95": mean_hd95(scores.hd95),
        "hd95_per_class": dict(scores.hd95),
        "hd95_without_missed": dict(scores.hd95_without_missed),
        "dice_test_with_false_alarms": mean_of(scores.with_false_alarms.values()),
        "counts": {name: asdict(counts) for name, counts in scores.counts.items()},
        "rounds": plan.rounds,
        "steps": training.trainer.history.steps,
        "gradient_evaluations": training.evaluations,
        "wire_model_bytes": training.wire_bytes,
        "network": training.trainer.settings.network.name,
        "parameters": sum(p.numel() for p in training.trainer.model_state.model.parameters()),
        "seconds": round(sum(training.spent_s.values()), 3),
        "seconds_by": {what: round(s, 3) for what, s in sorted(training.spent_s.items())},
        "cpu_seconds_by": {what: round(s, 3) for what, s in sorted(training.cpu_s.items())},
        "cases": case_rows(scores),
        "curve": [[number, dice] for number, dice in curve],
        "patients": {c.id: training.patients[c.id] for c in scores.per_case if c.id in training.patients},
        **training.deployed,
    }


SWAPS = ("mixed", "copied", "kept", "swap_dropped", "swap_in_doubt", "swap_lost")
"""What becomes of a swap at a site, as the core counts it."""


def swap_counts(node: NodeState) -> dict[str, int]:
    """How many of a site's swaps ended how."""
    return {what: node.count(what) for what in SWAPS}


def _taken_in(node: NodeState, site: str | None = None) -> int:
    """Models of other sites that went into this site's own."""
    return sum(node.count(what, site) for what in ("merged", "mixed", "copied"))


NO_TRAFFIC: Mapping[str, Any] = {
    **dict.fromkeys(("bytes_out", "bytes_in", "model_bytes_out", "model_bytes_in"), 0),
    **dict.fromkeys(("personal_bytes_out", "personal_bytes_in"), 0),
    **dict.fromkeys(("sent", "merged", "left_out", "reverted", "absences"), 0),
    "virtual_seconds": [0.0, 0.0],
    "sent_to": {},
    "merged_from": {},
    "notes": {},
    "warnings": [],
}


def kept(data: DataParams, site: str, share: float | None, folder: Path) -> DataParams:
    """The data with that share of the training cases, evenly chosen: a new list in `folder`."""
    if share is None:
        return data
    splits = load_cases(data, site, needs_labels=False)
    count = max(1, round(share * len(splits.training)))
    chosen = [splits.training[i * len(splits.training) // count] for i in range(count)]
    lists = {"training": chosen, "validation": splits.validation, "test": splits.test}
    return replace(write_list(folder, lists), ignore_label=data.ignore_label)


def membership_in(round_s: float) -> MembershipParams:
    """A failure detector that notices a failure within about a round, at little cost in messages."""
    return replace(
        MembershipParams(),
        probe_interval_s=round_s / 2,
        probe_timeout_s=round_s / 4,
        suspicion_multiplier=2.0,
        push_pull_interval_s=4 * round_s,
        dead_kept_s=4 * round_s,
    )


def _address(site: str) -> str:
    return f"{site}:1"
