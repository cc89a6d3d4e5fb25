"""The simulator with swaps: each worker holds a number T, trains it, and mixes it as a swap's order says.

What belongs here: the toy worker, its checkpoints, and the books on what each swap did at each site.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core.types import ExchangeId, ModelRef, Site
from tests.sim.simulator import SimNode, Simulator

GRID = 1024.0


def quantised(x: float) -> float:
    """Q: what goes over the wire."""
    return round(x * GRID) / GRID


@dataclass
class Shared:
    """A shared model and what its checkpoint remembers with it."""

    t: float
    drift: float = 0.0
    """What this site's own steps have added."""
    swapped: float = 0.0
    """What its swaps have added."""
    steps: int = 0
    round: int = 0
    ahead: int = 0
    last_swap: ExchangeId | None = None


@dataclass(frozen=True)
class Applied:
    """What one swap did at one site."""

    site: Site
    swap: ExchangeId
    partner: Site
    part: str
    weight: float
    delta: float
    steps: int


@dataclass
class Books:
    """What the tests ask about."""

    applied: list[Applied] = field(default_factory=list)
    exports: Counter[tuple[Site, ExchangeId]] = field(default_factory=Counter)
    parts: dict[tuple[Site, ExchangeId], str] = field(default_factory=dict)
    """What each site was to do, by its own plan."""


class SwapWorld(Simulator):
    """A federation that swaps."""

    def __init__(self, n: int, *, start: Callable[[int], float] = float, noise: float = 0.0, **kw: Any):
        super().__init__(n, **kw)
        self.noise = noise
        self.live = {s: Shared(start(node.index)) for s, node in self.nodes.items()}
        self.disk = {s: dataclasses.replace(shared) for s, shared in self.live.items()}
        self.first = {s: shared.t for s, shared in self.live.items()}
        self.files: dict[str, tuple[float, int, int]] = {}
        """Hash → the snapshot's value, steps and round."""
        self.books = Books()
        self.admit: Callable[[Site, Site], str] = lambda site, frm: ""
        self.lose_when: Callable[[SimNode, fx.Effect], bool] | None = None
        """Whether this message does not arrive."""
        self.crash_applied: Callable[[SimNode], bool] | None = None
        """Whether a node dies between a swap's checkpoint and the report of it."""
        self.carry_out |= {
            fx.ExportSnapshot: functools.partial(self._later, self.export),
            fx.AdmitSnapshot: functools.partial(self._later, self.admitted),
            fx.ApplySwap: functools.partial(self._later, self.apply),
        }
        self.step_s = (0.05, 0.5)
        self.deaths: Counter[Site] = Counter()
        """Deaths of each site's worker."""

    # -------------------------------------------------------------- the worker

    def crash(self, site: Site) -> None:
        super().crash(site)
        self._roll_back(self.nodes[site])

    def kill_worker(self, site: Site, restart_after_s: float = 5.0) -> None:
        if not self.nodes[site].up:
            return
        self._roll_back(self.nodes[site])
        self.deaths[site] += 1
        super().kill_worker(site, restart_after_s)

    def _roll_back(self, node: SimNode) -> None:
        """Back to the checkpoint."""
        shared = self.live[node.site] = dataclasses.replace(self.disk[node.site])
        node.worker.round, node.worker.steps, node.worker.ahead = shared.round, shared.steps, shared.ahead

    def _checkpoint(self, site: Site) -> None:
        self.disk[site] = dataclasses.replace(self.live[site])

    def _worker_ready(self, node: SimNode, life: int) -> None:
        if node.life != life or node.state is None:
            return
        w, shared = node.worker, self.live[node.site]
        ready = ev.WorkerReady(
            w.round, shared.steps, w.cases, w.contract, ahead=w.ahead, last_swap=shared.last_swap
        )
        self._step(node, ready)

    def train(self, site: Site) -> None:
        """Some steps of its own, not yet in a checkpoint."""
        step = self.noise * (self.rng.random() - 0.5)
        self.live[site].t += step
        self.live[site].drift += step

    def _round_done(self, node: SimNode, life: int, serial: int, effect: fx.StartRound) -> None:
        w, shared = node.worker, self.live[node.site]
        if node.life != life or node.state is None or w.running != serial:
            return
        self.train(node.site)
        w.round = shared.round = effect.round
        shared.steps += w.steps_per_round
        w.steps = shared.steps
        self._checkpoint(node.site)
        node.round_times.append(self.now)
        self._step(node, ev.RoundFinished(w.round, shared.steps, None, ahead=w.ahead))

    def _later(self, action: Callable[..., None], node: SimNode, effect: Any) -> None:
        self._soon(node, action, effect)

    def _soon(self, node: SimNode, action: Callable[..., None], effect: Any) -> None:
        """At the worker's next step boundary, unless one of the two processes dies before."""
        low, high = self.step_s
        serial = (node.life, self.deaths[node.site])
        self.at(
            self.now + low + (high - low) * self.rng.random(), self._if_alive, node, serial, action, effect
        )

    def _if_alive(self, node: SimNode, serial: object, action: Callable[..., None], effect: Any) -> None:
        if node.state is None or serial != (node.life, self.deaths[node.site]):
            return
        action(node, effect)

    def export(self, node: SimNode, effect: fx.ExportSnapshot) -> None:
        self.train(node.site)
        shared = self.live[node.site]
        self.books.exports[node.site, effect.swap] += 1
        name = f"{node.site} {effect.swap} {node.life} {self.books.exports[node.site, effect.swap]}"
        hash = blake2b(name.encode(), digest_size=32).hexdigest()
        self.files[hash] = (quantised(shared.t), shared.steps, shared.round + shared.ahead)
        model = ModelRef(hash, self.model_bytes, shared.round + shared.ahead, shared.steps, node.worker.cases)
        self._step(node, ev.SnapshotExported(effect.swap, model))

    def admitted(self, node: SimNode, effect: fx.AdmitSnapshot) -> None:
        assert effect.model.hash in self.files
        self._step(node, ev.SnapshotAdmitted(effect.swap, self.admit(node.site, effect.frm)))

    def apply(self, node: SimNode, effect: fx.ApplySwap) -> None:
        """Apply it once, checkpoint, report a little later."""
        shared = self.live[node.site]
        if shared.last_swap != effect.swap:
            self.train(node.site)
            theirs, steps, round = self.files[effect.theirs.hash]
            if effect.part == "mix":
                assert effect.own is not None
                delta = effect.weight * (theirs - self.files[effect.own.hash][0])
            else:
                delta = theirs - shared.t
                shared.steps = node.worker.steps = steps
                shared.ahead = node.worker.ahead = max(0, round - shared.round)
            shared.t += delta
            shared.swapped += delta
            shared.last_swap = effect.swap
            self._checkpoint(node.site)
            self.books.applied.append(
                Applied(node.site, effect.swap, effect.frm, effect.part, effect.weight, delta, steps)
            )
        if self.crash_applied is not None and self.crash_applied(node):
            self.crash(node.site)
        else:
            self._soon(node, self.report, effect)

    def report(self, node: SimNode, effect: fx.ApplySwap) -> None:
        copied = effect.part == "copy"
        shared = self.live[node.site]
        steps, ahead = (shared.steps, shared.ahead) if copied else (None, None)
        self._step(node, ev.SwapApplied(effect.swap, steps=steps, ahead=ahead))

    def _request(self, node: SimNode, effect: fx.Request) -> None:
        with self._perhaps_lost(node, effect):
            super()._request(node, effect)

    def _respond(self, node: SimNode, effect: fx.Respond) -> None:
        with self._perhaps_lost(node, effect):
            super()._respond(node, effect)

    @contextlib.contextmanager
    def _perhaps_lost(self, node: SimNode, effect: fx.Effect) -> Iterator[None]:
        net = self.net
        if self.lose_when is not None and self.lose_when(node, effect):
            self.net = dataclasses.replace(net, loss=1.0)
        yield
        self.net = net

    def _note(self, node: SimNode, effect: fx.Note) -> None:
        super()._note(node, effect)
        if effect.event == "swap_opened":
            swap = ExchangeId(effect.detail["asker"], effect.detail["number"])
            self.books.parts[node.site, swap] = effect.detail["part"]

    # -------------------------------------------------------------- what the tests ask

    def weighted_sum(self) -> float:
        return sum(n.worker.cases * self.live[s].t for s, n in self.nodes.items())

    def expected_sum(self) -> float:
        """What the sites began with, and what their own steps added."""
        return sum(n.worker.cases * (self.first[s] + self.live[s].drift) for s, n in self.nodes.items())

    def spread(self) -> float:
        values = [shared.t for shared in self.live.values()]
        return max(values) - min(values)

    def check(self) -> None:
        """What holds in every run: no swap is applied twice at a site, and the sum is accounted for."""
        times = Counter((a.site, a.swap) for a in self.books.applied)
        assert not [k for k, n in times.items() if n > 1], "a swap was applied twice"
        for sides in self.by_swap().values():
            if len(sides) == 2 and {a.part for a in sides} == {"mix"}:
                one, two = sides
                assert one.weight + two.weight == pytest.approx(1.0)
                balance = sum(self.nodes[a.site].worker.cases * a.delta for a in sides)
                assert balance == pytest.approx(0.0, abs=1e-9), "the two sides do not cancel"
        total = self.expected_sum() + self.unbalanced()
        assert self.weighted_sum() == pytest.approx(total, abs=1e-6)

    def by_swap(self) -> dict[ExchangeId, list[Applied]]:
        found: dict[ExchangeId, list[Applied]] = {}
        for one in self.books.applied:
            found.setdefault(one.swap, []).append(one)
        return found

    def one_sided(self) -> list[Applied]:
        """Swaps of two mixing sites that only one of them has applied."""
        alone = [a[0] for a in self.by_swap().values() if len(a) == 1]
        return [a for a in alone if self.books.parts.get((a.partner, a.swap)) == "mix"]

    def unbalanced(self) -> float:
        """The weighted sum that copies, one-way meetings and one-sided swaps have added."""
        sides = [a for a in self.by_swap().values() if len(a) == 1]
        return sum(self.nodes[a[0].site].worker.cases * a[0].delta for a in sides)
