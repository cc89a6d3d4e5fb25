"""The parts of a node, built from its setup and connected to each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.effects import Persist, PersonalRecord, Snapshot, SwapRecord
from gossipseg.core.enforcement import QuarantineEnforcer
from gossipseg.core.file_router import FileRouter
from gossipseg.core.gossip.exchange import GossipExchange
from gossipseg.core.gossip.hypercube import HypercubeTurns
from gossipseg.core.gossip.inbox import Inbox
from gossipseg.core.gossip.set_aside import SetAside
from gossipseg.core.gossip.swap import SwapExchange
from gossipseg.core.gossip.swap_turns import SwapTurns
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.failure_detector import FailureDetector
from gossipseg.core.membership.handshake import Handshake
from gossipseg.core.membership.members import Membership
from gossipseg.core.personal.personal import PersonalModels
from gossipseg.core.quarantine import Quarantine
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.setup import NodeSetup
from gossipseg.core.types import Site
from gossipseg.core.wellness import Wellness
from gossipseg.core.worker_state import WorkerState


@dataclass(slots=True)
class DurableState:
    """The durable state of a node. `persist` is Context.persist."""

    ctx: Context
    membership: Membership
    gossip: GossipExchange
    rounds: Rounds | None
    worker_state: WorkerState
    ledger: ManifestLedger
    enforcer: QuarantineEnforcer
    counts: Counter[tuple[str, Site]]
    swaps: SwapExchange | None
    personal: PersonalModels

    def persist(self) -> None:
        """Write the present state to disk before any later effect of this step."""
        self.ctx.effects.append(Persist(self.snapshot()))

    def snapshot(self) -> Snapshot:
        info = self.ctx.info
        return Snapshot(
            incarnation=self.membership.self_record.incarnation,
            round=info.round,
            steps=info.steps,
            inbox=self.gossip.inbox.entries,
            paused=self.worker_state.paused,
            counters=tuple((what, site, n) for (what, site), n in sorted(self.counts.items())),
            rounds=self.rounds.acceptor.record if self.rounds is not None else None,
            sequence=self.ledger.sequence,
            seen=tuple(self.ledger.seen[key] for key in sorted(self.ledger.seen)),
            conduct=self.enforcer.records(),
            swaps=self.swaps.record() if self.swaps is not None else None,
            personal=self.personal.record(),
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a node. `rounds`: None without a coordinator. `swaps`: None where no swaps are made.
    `counts`: (what, site) → count, across restarts."""

    ctx: Context
    counts: Counter[tuple[str, Site]]
    ledger: ManifestLedger
    membership: Membership
    handshake: Handshake
    failure_detector: FailureDetector
    gossip: GossipExchange
    swaps: SwapExchange | None
    rounds: Rounds | None
    worker_state: WorkerState
    enforcer: QuarantineEnforcer
    file_router: FileRouter
    wellness: Wellness
    personal: PersonalModels


def assemble(setup: NodeSetup) -> Parts:
    """Build all parts, ready for the start."""
    then = setup.snapshot
    counts = Counter({(what, site): n for what, site, n in then.counters})
    ctx = Context(
        setup.site,
        federation=setup.federation,
        contract=setup.contract,
        protocol=setup.protocol,
        rng=setup.rng,
        sign=setup.sign,
    )
    ledger = ManifestLedger(
        ctx,
        require=setup.trust.require_manifests,
        sequence=then.sequence,
        floor=setup.sequence_floor,
        seen=(s for s in then.seen if s.maker in setup.sites),
    )
    membership = Membership(
        ctx,
        setup.membership,
        sites=setup.sites,
        address=setup.address,
        incarnation=then.incarnation + 1,
    )
    handshake = Handshake(ctx, membership)
    failure_detector = FailureDetector(ctx, setup.membership, membership, handshake)
    budget = Budget(setup.rounds, setup.federation_rounds)
    gossip = _gossip(setup, ctx, budget, membership, handshake, ledger, counts)
    swaps = _swaps(setup, ctx, budget, membership, handshake, ledger, counts, gossip)
    rounds = _rounds(setup, ctx, budget, membership, ledger) if setup.exchange == "rounds" else None
    worker_state = _worker_state(setup, ctx, budget, membership, gossip, swaps, rounds)
    enforcer = QuarantineEnforcer(
        ctx, Quarantine(setup.quarantine), membership, gossip, rounds, counts, then.conduct
    )
    personal = _personal(setup, ctx, budget, membership, ledger, counts)
    worker_state.personal = personal
    memory = DurableState(
        ctx, membership, gossip, rounds, worker_state, ledger, enforcer, counts, swaps, personal
    )
    ctx.persist = memory.persist
    wellness = Wellness(
        ctx,
        setup.membership,
        membership,
        setup.gossip,
        gossip,
        rounds,
        setup.exchange,
        budget,
        setup.exchange_at,
        swaps,
    )
    membership.watchers.append(wellness.on_change)
    file_router = FileRouter(ctx, membership, gossip, rounds, wellness, swaps, personal)
    ctx.say(listed=setup.listed)
    return Parts(
        ctx,
        counts,
        ledger,
        membership,
        handshake,
        failure_detector,
        gossip,
        swaps,
        rounds,
        worker_state,
        enforcer,
        file_router,
        wellness,
        personal,
    )


def _gossip(
    setup: NodeSetup,
    ctx: Context,
    budget: Budget,
    membership: Membership,
    handshake: Handshake,
    ledger: ManifestLedger,
    counts: Counter[tuple[str, Site]],
) -> GossipExchange:
    # peers.yaml may have changed while this site was down: drop models of removed sites
    waiting = tuple(e for e in setup.snapshot.inbox if e.frm in setup.sites)
    gossip = GossipExchange(
        ctx,
        setup.gossip,
        membership,
        handshake,
        exchanges=setup.exchange == "gossip" and setup.gossip.exchange == "push",
        budget=budget,
        times=setup.exchange_at,
        max_model_bytes=setup.max_model_bytes,
        inbox=Inbox(setup.gossip, waiting),
        counts=counts,
        ledger=ledger,
    )
    membership.watchers.append(gossip.on_change)
    return gossip


def _swaps(
    setup: NodeSetup,
    ctx: Context,
    budget: Budget,
    membership: Membership,
    handshake: Handshake,
    ledger: ManifestLedger,
    counts: Counter[tuple[str, Site]],
    gossip: GossipExchange,
) -> SwapExchange | None:
    if setup.exchange != "gossip" or setup.gossip.exchange != "swap":
        return None
    record = setup.snapshot.swaps or SwapRecord()
    kind = HypercubeTurns if setup.gossip.swaps_per_round == "log2" else SwapTurns
    aside = SetAside(record.aside)
    turns = kind(ctx, setup.gossip, budget, membership, gossip.pool, aside, setup.exchange_at, record.last)
    swaps = SwapExchange(
        ctx,
        setup.gossip,
        membership,
        handshake,
        turns=turns,
        budget=budget,
        max_model_bytes=setup.max_model_bytes,
        counts=counts,
        ledger=ledger,
        record=record,
        floor=setup.sequence_floor,
    )
    membership.watchers.append(swaps.on_change)
    return swaps


def _rounds(
    setup: NodeSetup, ctx: Context, budget: Budget, membership: Membership, ledger: ManifestLedger
) -> Rounds:
    rounds = Rounds(
        ctx,
        setup.rounds_params,
        membership,
        budget=budget,
        times=setup.exchange_at,
        finetune_rounds=setup.finetune_rounds,
        max_model_bytes=setup.max_model_bytes,
        record=setup.snapshot.rounds,
        ledger=ledger,
    )
    membership.watchers.append(rounds.on_change)
    return rounds


def _personal(
    setup: NodeSetup,
    ctx: Context,
    budget: Budget,
    membership: Membership,
    ledger: ManifestLedger,
    counts: Counter[tuple[str, Site]],
) -> PersonalModels:
    return PersonalModels(
        ctx,
        setup.gossip,
        membership,
        budget=budget,
        ledger=ledger,
        counts=counts,
        max_model_bytes=setup.max_model_bytes,
        active=setup.exchange != "none",
        record=setup.snapshot.personal or PersonalRecord(),
    )


def _worker_state(
    setup: NodeSetup,
    ctx: Context,
    budget: Budget,
    membership: Membership,
    gossip: GossipExchange,
    swaps: SwapExchange | None,
    rounds: Rounds | None,
) -> WorkerState:
    state = WorkerState(
        ctx,
        gossip,
        membership,
        budget=budget,
        snapshot=setup.snapshot,
        coordinated=rounds,
        swaps=swaps,
        dice_run=setup.quarantine.dice_run if setup.quarantine.dice_offence else None,
    )
    if rounds is not None:
        rounds.worker = state
    if swaps is not None:
        swaps.decision.settled = state.resume
    return state
