"""A whole federation in virtual time: many NodeStates, one thread, one event heap, one seeded network.

What belongs here: a shell for the pure core whose clock, wire, disk and worker are numbers. Delay, loss,
duplication, partitions, crashes at any effect, restarts from Persist records alone, starved loops,
training that takes time, transfers that take time. What must not: assertions (they are the tests').
"""

from __future__ import annotations

import gc
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.node import NodeSetup, NodeState
from gossipseg.core.params import GossipParams, MembershipParams, QuarantineParams, RoundsParams
from gossipseg.core.types import MemberState, ModelRef, Proposal, Site

CONTRACT = (("federation", '"sim"'), ("network.signature", '""'), ("training.lr", "0.003"))


def signed_contract(contract: tuple[tuple[str, str], ...] = CONTRACT) -> tuple[tuple[str, str], ...]:
    return tuple((k, '"net"' if k == "network.signature" else v) for k, v in contract)


@dataclass(frozen=True)
class Net:
    """The wire between all sites. Times in seconds, sizes in bytes."""

    delay_s: tuple[float, float] = (0.005, 0.05)
    loss: float = 0.0
    """Share of requests, and of replies, that never arrive."""
    duplication: float = 0.0
    """Share of requests that arrive twice."""
    bytes_per_s: float = 10e6


@dataclass
class Worker:
    """A training process and what its checkpoint remembers."""

    cases: int
    round_s: float = 20.0
    steps_per_round: int = 10
    start_s: float = 2.0
    contract: tuple[tuple[str, str], ...] = field(default_factory=signed_contract)
    round: int = 0
    steps: int = 0
    ahead: int = 0
    """As events.WorkerReady says."""
    last_visit: str | None = None
    last_global: str | None = None
    aggregate_s: float = 3.0
    heard_of: int = 0
    """Bit mask of the sites whose training has reached this model."""
    visits: list[str] = field(default_factory=list)
    running: int = 0
    """Serial of the round now computed; a result with another serial is void."""


@dataclass(frozen=True)
class Update:
    """What a site's update was made from."""

    site: Site
    base: str | None
    """Hash of the global model; None: W_0."""


@dataclass(frozen=True)
class Committed:
    """A site has put on disk that this is the global model of its round."""

    t: float
    site: Site
    proposal: Proposal
    stored_by: frozenset[Site]
    """Sites on whose disks, at that moment, it is the stored or committed model of that round."""


@dataclass
class SimNode:
    site: Site
    index: int
    worker: Worker
    rounds: int | None
    state: NodeState | None = None
    life: int = 0
    disk: fx.Snapshot | None = None
    tick_at: float | None = None
    ticked_at: float = -1.0
    ticks_now: int = 0
    """Ticks at this same instant."""
    busy_until: float = 0.0
    crash_within: int | None = None
    """Die after so many more effects of the next step that has effects."""
    pending: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Request id → (sent at, deadline)."""
    sent: Counter[str] = field(default_factory=Counter)
    notes: list[tuple[float, fx.Note]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    """The store: what is in it survives a crash. Kept in order with a coordinator only."""
    finished_at: float | None = None
    round_times: list[float] = field(default_factory=list)

    @property
    def up(self) -> bool:
        return self.state is not None


class Simulator:
    """`run(until)` plays the heap; `at(t, action)` schedules what the world does to the federation."""

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        membership: MembershipParams | None = None,
        gossip: GossipParams | None = None,
        net: Net | None = None,
        rounds: int | None = None,
        federation_rounds: int | None = None,
        exchange: Literal["none", "gossip", "rounds"] = "gossip",
        rounds_params: RoundsParams | None = None,
        exchange_at: ExchangeTimes = ExchangeTimes(),  # noqa: B008
        finetune_rounds: int = 0,
        cases: Callable[[int], int] = lambda i: 20,
        round_s: Callable[[int], float] = lambda i: 20.0,
        with_workers: bool = True,
        check_every: int = 0,
        trace: bool = False,
        keep_notes: bool = True,
        model_bytes: int = 8_000_000,
        quarantine: QuarantineParams | None = None,
        sign: Callable[[bytes], bytes] = lambda data: b"",
    ) -> None:
        """`sign`: nobody checks what it gives; every signature is believed."""
        self.rng, self.sign = random.Random(seed), sign
        self.membership = membership or MembershipParams()
        self.gossip = gossip or GossipParams(exchange="push")
        self.net = net or Net()
        self.exchange, self.with_workers, self.model_bytes = exchange, with_workers, model_bytes
        self.rounds_params = rounds_params or RoundsParams()
        self.quarantine = quarantine or QuarantineParams()
        self.exchange_at, self.finetune_rounds = exchange_at, finetune_rounds
        self.federation_rounds = federation_rounds
        self.updates: dict[str, Update] = {}
        """Of each exported update, what it was made from."""
        self.contents: dict[str, tuple[tuple[Site, str], ...]] = {}
        """Of each global model, the updates in it."""
        self.commits: list[Committed] = []
        self.on_round: Callable[[SimNode, fx.StartRound], None] | None = None
        self.refused_updates: set[Site] = set()
        """Sites whose updates fail the worker's checks."""
        self.crash_when: Callable[[SimNode, fx.Effect], bool] | None = None
        """Whether a node dies in place of carrying this effect out."""
        self.check_every, self.keep_notes = check_every, keep_notes
        self.now, self.steps, self._seq = 0.0, 0, 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._tokens: dict[int, tuple[SimNode, int, int]] = {}
        self._last_token = 0
        self._group: dict[Site, int] = {}
        self._cuts: set[frozenset[Site]] = set()
        self.lineage: dict[str, int] = {}
        self.events: Counter[str] = Counter()
        self.hash = blake2b() if trace else None
        names = [f"s{i:04d}" for i in range(n)]
        self.addresses = {s: f"{s}:7443" for s in names}
        self.nodes = {
            s: SimNode(s, i, Worker(cases(i), round_s(i), heard_of=1 << i), rounds)
            for i, s in enumerate(names)
        }
        self._seeds = {s: self.rng.getrandbits(64) for s in names}
        self.carry_out: dict[type, Callable[[SimNode, Any], None]] = {
            fx.Persist: self._persist,
            fx.Note: self._note,
            fx.Request: self._request,
            fx.Respond: self._respond,
            fx.StartTransfer: self._start_transfer,
            fx.StartRound: self._start_round,
            fx.Aggregate: self._aggregate,
            fx.Finished: self._finished,
        }
        """What the world does for each kind of effect."""

    # -------------------------------------------------------------- the world's hands

    def at(self, t: float, action: Callable[..., None], *args: Any) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (t, self._seq, action, args))

    def run(self, until: float) -> None:
        heap = self._heap
        collecting = gc.isenabled()
        gc.disable()  # a thousand nodes hold a million members: every full collection would walk them all
        try:
            while heap and heap[0][0] <= until:
                t, _, action, args = heapq.heappop(heap)
                self.now = t
                action(*args)
        finally:
            if collecting:
                gc.enable()
        self.now = until

    @property
    def scheduled(self) -> int:
        """What waits on the heap."""
        return len(self._heap)

    def step(self) -> None:
        """Play the next thing on the heap."""
        self.now, _, action, args = heapq.heappop(self._heap)
        action(*args)

    def start_all(self, within_s: float = 1.0) -> None:
        for site in self.nodes:
            self.at(self.now + self.rng.random() * within_s, self.start, site)

    def start(self, site: Site, protocol: tuple[int, int] = (1, 1)) -> None:
        """A daemon starts: with what its disk remembers, and nothing else."""
        node = self.nodes[site]
        assert not node.up
        node.life += 1
        setup = NodeSetup(
            site,
            address=self.addresses[site],
            sites={s: a for s, a in self.addresses.items() if s != site},
            federation="sim",
            contract=tuple((k, '""' if k == "network.signature" else v) for k, v in node.worker.contract),
            membership=self.membership,
            gossip=self.gossip,
            exchange=self.exchange,
            rounds=node.rounds,
            federation_rounds=self.federation_rounds,
            rounds_params=self.rounds_params,
            exchange_at=self.exchange_at,
            finetune_rounds=self.finetune_rounds,
            rng=random.Random(self._seeds[site] + node.life),
            sign=self.sign,
            snapshot=node.disk or fx.Snapshot(),
            protocol=protocol,
            quarantine=self.quarantine,
            strict=True,
        )
        node.state = NodeState(setup)
        self._step(node, ev.Start())
        if self.with_workers:
            self.at(self.now + node.worker.start_s, self._worker_ready, node, node.life)

    def crash(self, site: Site) -> None:
        """kill -9, power cut: memory is gone, the disk stays."""
        node = self.nodes[site]
        if not node.up:
            return
        node.state, node.tick_at, node.crash_within = None, None, None
        node.pending.clear()
        node.worker.running += 1
        node.busy_until = 0.0

    def crash_mid_step(self, site: Site, effects: int) -> None:
        """Die after so many effects of its next step that has some."""
        if self.nodes[site].up:
            self.nodes[site].crash_within = effects

    def tell(self, site: Site, event: ev.Event) -> None:
        node = self.nodes[site]
        if node.up:
            self._step(node, event)

    def inject(self, site: Site, frm: Site, body: messages.Request) -> None:
        """`frm` asks what its own core would not; nobody reads the answer."""
        self._last_token += 1
        self._tokens[self._last_token] = (self.nodes[frm], -1, 0)
        self.tell(site, ev.Incoming(frm, self._last_token, body))

    def partition(self, *groups: list[Site]) -> None:
        """Sites of different groups cannot reach each other; sites in none are in group 0."""
        self._group = {s: i for i, group in enumerate(groups, 1) for s in group}

    def cut(self, a: Site, b: Site) -> None:
        """These two cannot reach each other; others may still reach both."""
        self._cuts.add(frozenset((a, b)))

    def heal(self) -> None:
        self._group, self._cuts = {}, set()

    def starve(self, site: Site, for_s: float) -> None:
        """Its loop stands still: whatever comes is handled late; replies that came in vain time out."""
        self.nodes[site].busy_until = self.now + for_s

    # -------------------------------------------------------------- steps and effects

    def _step(self, node: SimNode, event: ev.Event) -> None:
        state = node.state
        assert state is not None
        self.steps += 1
        out = state.step(event, self.now)
        if self.check_every and self.steps % self.check_every == 0:
            state.check_invariants()
        if self.hash is not None:
            self.hash.update(f"{self.now!r} {node.site} {event!r} {out!r}\n".encode())
        life = node.life
        for effect in out:
            if self.crash_when is not None and self.crash_when(node, effect):
                self.crash(node.site)
                return
            if node.crash_within is not None:
                if node.crash_within <= 0:
                    self.events["crash_mid_step"] += 1
                    self.crash(node.site)
                    return
                node.crash_within -= 1
            self.carry_out[type(effect)](node, effect)
            if node.life != life or node.state is None:
                return
        if self.exchange == "rounds":
            node.files &= state.kept_models() | {s.model.hash for s in state.sending}
        due = state.next_deadline()
        if due is not None and due != node.tick_at:
            node.tick_at = due
            self.at(due, self._tick, node, life, due)

    def _tick(self, node: SimNode, life: int, due: float) -> None:
        if node.life != life or node.state is None or node.tick_at != due:
            return
        if self.now < node.busy_until:
            self.at(node.busy_until, self._late_tick, node, life, due)
            return
        node.tick_at = None
        node.ticks_now = node.ticks_now + 1 if node.ticked_at == self.now else 1
        node.ticked_at = self.now
        assert node.ticks_now < 100, f"{node.site}: the clock of its deadlines stands still"
        self._step(node, ev.Tick())

    def _late_tick(self, node: SimNode, life: int, due: float) -> None:
        if node.life == life and node.state is not None and node.tick_at == due:
            node.tick_at = None
            self._step(node, ev.Tick())

    def _persist(self, node: SimNode, effect: fx.Persist) -> None:
        before, node.disk = node.disk, effect.snapshot
        record = effect.snapshot.rounds
        if record is None or record.committed is None:
            return
        if before is None or before.rounds is None or before.rounds.committed != record.committed:
            assert record.committed.model.hash in node.files, "committed without the file"
            stored = frozenset(n.site for n in self.nodes.values() if self._has_stored(n, record.committed))
            self.commits.append(Committed(self.now, node.site, record.committed, stored))

    def _has_stored(self, node: SimNode, proposal: Proposal) -> bool:
        record = node.disk.rounds if node.disk is not None else None
        if record is None:
            return False
        stored = [p for p in (record.committed, record.accepted) if p is not None]
        later = record.committed is not None and record.committed.round > proposal.round
        return later or any(
            (p.round, p.model.hash) == (proposal.round, proposal.model.hash) and p.model.hash in node.files
            for p in stored
        )

    def _note(self, node: SimNode, effect: fx.Note) -> None:
        self.events[effect.event] += 1
        if self.keep_notes:
            node.notes.append((self.now, effect))

    def _finished(self, node: SimNode, effect: fx.Finished) -> None:
        node.finished_at = self.now

    # -------------------------------------------------------------- requests

    def _delay(self) -> float:
        low, high = self.net.delay_s
        return low + (high - low) * self.rng.random()

    def _reachable(self, a: Site, b: Site) -> bool:
        if self._cuts and frozenset((a, b)) in self._cuts:
            return False
        return not self._group or self._group.get(a, 0) == self._group.get(b, 0)

    def _request(self, node: SimNode, effect: fx.Request) -> None:
        node.sent[type(effect.body).__name__] += 1
        node.pending[effect.id] = (self.now, self.now + effect.timeout_s)
        self.at(self.now + effect.timeout_s, self._timeout, node, node.life, effect.id)
        target = self.nodes.get(effect.to)
        if target is None or not self._reachable(node.site, effect.to):
            return
        if not target.up:
            self.at(self.now + self._delay(), self._fail, node, node.life, effect.id, "unreachable")
            return
        copies = 1 + (self.rng.random() < self.net.duplication) if self.net.duplication else 1
        for _ in range(copies):
            if not self.net.loss or self.rng.random() >= self.net.loss:
                self._last_token += 1
                self._tokens[self._last_token] = (node, node.life, effect.id)
                args = (target, target.life, node.site, self._last_token, effect.body)
                self.at(self.now + self._delay(), self._deliver, *args)

    def _deliver(self, target: SimNode, life: int, frm: Site, token: int, body: messages.Request) -> None:
        if target.life != life or target.state is None or not self._reachable(frm, target.site):
            self._tokens.pop(token, None)
        elif self.now < target.busy_until:
            self.at(target.busy_until, self._deliver, target, life, frm, token, body)
        else:
            self._step(target, ev.Incoming(frm, token, body))

    def _respond(self, node: SimNode, effect: fx.Respond) -> None:
        node.sent[type(effect.body).__name__] += 1
        asker, life, id = self._tokens.pop(effect.token)
        if self._reachable(node.site, asker.site) and (
            not self.net.loss or self.rng.random() >= self.net.loss
        ):
            self.at(self.now + self._delay(), self._reply, asker, life, id, effect.body)

    def _reply(self, node: SimNode, life: int, id: int, body: messages.Reply) -> None:
        if node.life != life or node.state is None or id not in node.pending:
            return
        if self.now < node.busy_until:
            return  # pessimistic: a starved loop reads its replies too late, and sees the timeout
        sent, deadline = node.pending.pop(id)
        if self.now <= deadline:
            self._step(node, ev.Reply(id, body, self.now - sent))

    def _timeout(self, node: SimNode, life: int, id: int) -> None:
        self._fail(node, life, id, "timeout")

    def _fail(self, node: SimNode, life: int, id: int, reason: str) -> None:
        if node.life != life or node.state is None or id not in node.pending:
            return
        if self.now < node.busy_until:
            self.at(node.busy_until, self._fail, node, life, id, reason)
            return
        del node.pending[id]
        self._step(node, ev.RequestFailed(id, reason))

    # -------------------------------------------------------------- transfers

    def _start_transfer(self, node: SimNode, effect: fx.StartTransfer) -> None:
        node.sent["transfer"] += 1
        if self.exchange == "rounds":
            assert effect.model.hash in node.files, "it sends a file that it has not"
        duration = effect.model.size_bytes / self.net.bytes_per_s
        target = self.nodes[effect.to]
        if target.state is not None and self._reachable(node.site, effect.to):
            self.at(self.now + self._delay(), self._transfer_began, node, target, target.life, effect)
        args = (node, node.life, target, target.life, effect)
        self.at(self.now + self._delay() + duration, self._transfer_end, *args)

    def _transfer_began(self, node: SimNode, target: SimNode, life: int, effect: fx.StartTransfer) -> None:
        if target.life == life and target.state is not None:
            self._step(target, ev.TransferBegan(node.site, effect.model.hash))

    def _transfer_end(
        self, node: SimNode, life: int, target: SimNode, target_life: int, effect: fx.StartTransfer
    ) -> None:
        hash = effect.model.hash
        arrives = (
            target.life == target_life
            and target.state is not None
            and self._reachable(node.site, target.site)
            and target.state.expects(node.site, hash) is not None
            and node.life == life
        )
        if arrives:
            target.files.add(hash)
            self._step(target, ev.ModelArrived(node.site, effect.model))
        elif self.exchange == "rounds":
            pass  # nobody tells the receiver that a stream has broken off
        elif target.life == target_life and target.state is not None:
            self._step(target, ev.ModelBroken(node.site, hash, "cut"))
        if node.life == life and node.state is not None:
            outcome = ev.TransferDone(effect.id) if arrives else ev.TransferFailed(effect.id, "unreachable")
            self._step(node, outcome)

    # -------------------------------------------------------------- the worker

    def _worker_ready(self, node: SimNode, life: int) -> None:
        if node.life != life or node.state is None:
            return
        w = node.worker
        event = ev.WorkerReady(
            w.round, w.steps, w.cases, w.contract, w.last_visit, None, w.last_global, ahead=w.ahead
        )
        self._step(node, event)

    def _start_round(self, node: SimNode, effect: fx.StartRound) -> None:
        w = node.worker
        w.running += 1
        if self.on_round is not None:
            self.on_round(node, effect)
        if effect.start_from is not None:
            assert effect.start_from.hash in node.files, "it starts from a file that it has not"
        took = w.round_s * (0.9 + 0.2 * self.rng.random()) * (2 if effect.visit else 1)
        self.at(self.now + took, self._round_done, node, node.life, w.running, effect)

    def _round_done(self, node: SimNode, life: int, serial: int, effect: fx.StartRound) -> None:
        w = node.worker
        if node.life != life or node.state is None or w.running != serial:
            return
        takes_over = effect.visit is not None and effect.visit.model.steps > 2 * w.steps
        w.round, w.steps = effect.round, w.steps + w.steps_per_round
        visit = None
        if effect.visit is not None:
            model = effect.visit.model
            w.last_visit = model.hash
            w.visits.append(model.hash)
            w.heard_of |= self.lineage.get(model.hash, 0)
            w.steps = max(w.steps, model.steps)
            if takes_over:
                w.ahead = max(0, self._position(model.round + 1) - effect.round)
            visit = ev.VisitResult(model.hash, "merged")
        if effect.start_from is not None:
            w.last_global = effect.start_from.hash
        if self.exchange == "rounds":
            w.ahead = effect.ahead
        # Here the checkpoint is on disk; the daemon may die before it hears of it.
        export = None
        if effect.export:
            hash = blake2b(f"{node.site} {w.round} {life}".encode(), digest_size=32).hexdigest()
            self.lineage[hash] = w.heard_of
            self.updates[hash] = Update(node.site, w.last_global)
            export = ModelRef(hash, self.model_bytes, w.round + w.ahead, w.steps, w.cases)
        node.round_times.append(self.now)
        if self.now < node.busy_until:
            self.at(node.busy_until, self._report_round, node, life, w.round, w.steps, export, visit)
        else:
            self._report_round(node, life, w.round, w.steps, export, visit)

    def _position(self, round: int) -> int:
        """A round of the federation's budget, which it does not pass."""
        return round if self.federation_rounds is None else min(round, self.federation_rounds)

    def _report_round(
        self,
        node: SimNode,
        life: int,
        round: int,
        steps: int,
        export: ModelRef | None,
        visit: ev.VisitResult | None,
    ) -> None:
        if node.life == life and node.state is not None:
            if export is not None:
                node.files.add(export.hash)
            done = ev.RoundFinished(round, steps, None, export, visit, ahead=node.worker.ahead)
            self._step(node, done)

    def _aggregate(self, node: SimNode, effect: fx.Aggregate) -> None:
        w = node.worker
        w.running += 1
        assert len({site for site, _ in effect.updates}) == len(effect.updates), "a site twice"
        for site, model in effect.updates:
            assert model.hash in node.files, "it combines a file that it has not"
            assert self.updates[model.hash].site == site, "another site's update"
        self.at(self.now + w.aggregate_s, self._aggregated, node, node.life, w.running, effect)

    def _aggregated(self, node: SimNode, life: int, serial: int, effect: fx.Aggregate) -> None:
        if node.life != life or node.state is None or node.worker.running != serial:
            return
        if self.now < node.busy_until:
            self.at(node.busy_until, self._aggregated, node, life, serial, effect)
            return
        used = tuple((s, m.hash) for s, m in effect.updates if s not in self.refused_updates)
        refused = tuple((s, "not_finite") for s, _ in effect.updates if s in self.refused_updates)
        if not used:
            failed = ev.AggregationFailed(effect.round, effect.attempt, "no_update_left", refused)
            self._step(node, failed)
            return
        name = f"{effect.round} {effect.attempt} {node.site} {life} {used}"
        hash = blake2b(name.encode(), digest_size=32).hexdigest()
        self.contents[hash] = used
        node.files.add(hash)
        model = ModelRef(hash, self.model_bytes, effect.round, 0, 0, kind="global")
        sites = tuple(s for s, _ in used)
        self._step(node, ev.Aggregated(effect.round, effect.attempt, model, sites, refused))

    def kill_worker(self, site: Site, restart_after_s: float = 5.0) -> None:
        """The training process dies; the daemon restarts it from its checkpoint."""
        node = self.nodes[site]
        if node.up:
            node.worker.running += 1
            self._step(node, ev.WorkerLost("killed"))
            self.at(self.now + restart_after_s, self._worker_ready, node, node.life)

    # -------------------------------------------------------------- what the tests ask

    def up(self) -> list[SimNode]:
        return [n for n in self.nodes.values() if n.state is not None]

    def believes(self, who: Site, of: Site) -> MemberState:
        state = self.nodes[who].state
        assert state is not None
        return state.members[of].state

    def wrong_views(self) -> list[tuple[Site, Site, MemberState]]:
        """(who, of whom, what) of every belief that is not so: running sites not alive, others alive."""
        running = {n.site for n in self.up()}
        wrong = []
        for node in self.up():
            assert node.state is not None
            for site, member in node.state.members.items():
                if member.live != (site in running):
                    wrong.append((node.site, site, member.state))
        return wrong

    def trace(self) -> str:
        assert self.hash is not None
        return self.hash.hexdigest()


__all__ = ["CONTRACT", "Committed", "Net", "SimNode", "Simulator", "Update", "Worker", "signed_contract"]
