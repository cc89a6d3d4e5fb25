"""The parts of a node, made from its setup and made known to each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.enforcement import Warden
from gossipseg.core.file_router import Traffic
from gossipseg.core.gossip.exchange import Gossip
from gossipseg.core.gossip.inbox import Inbox
from gossipseg.core.manifests import Notary
from gossipseg.core.membership.failure_detector import Prober
from gossipseg.core.membership.handshake import Greeter
from gossipseg.core.membership.members import Membership
from gossipseg.core.memory import Memory
from gossipseg.core.quarantine import Quarantine
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.setup import Setup
from gossipseg.core.types import Site
from gossipseg.core.wellness import Wellness
from gossipseg.core.worker_state import Training


@dataclass(frozen=True, slots=True)
class Parts:
    """`rounds`: None without a coordinator. `counts`: (what, site) → how often, across restarts."""

    ctx: Context
    counts: Counter[tuple[str, Site]]
    notary: Notary
    membership: Membership
    greeter: Greeter
    prober: Prober
    gossip: Gossip
    rounds: Rounds | None
    training: Training
    warden: Warden
    traffic: Traffic
    wellness: Wellness


def assemble(setup: Setup) -> Parts:
    """All parts, ready for the start."""
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
    notary = Notary(
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
    greeter = Greeter(ctx, membership)
    prober = Prober(ctx, setup.membership, membership, greeter)
    budget = Budget(setup.rounds, setup.federation_rounds)
    gossip = _gossip(setup, ctx, budget, membership, greeter, notary, counts)
    rounds = _rounds(setup, ctx, budget, membership, notary) if setup.exchange == "rounds" else None
    training = _training(setup, ctx, budget, membership, gossip, rounds)
    warden = Warden(ctx, Quarantine(setup.quarantine), membership, gossip, rounds, counts, then.conduct)
    memory = Memory(ctx, membership, gossip, rounds, training, notary, warden, counts)
    ctx.persist = memory.persist
    wellness = Wellness(ctx, setup.membership, membership, setup.gossip, gossip, rounds, setup.exchange)
    membership.watchers.append(wellness.on_change)
    traffic = Traffic(ctx, membership, gossip, rounds, wellness)
    ctx.say(listed=setup.listed)
    return Parts(
        ctx, counts, notary, membership, greeter, prober, gossip, rounds, training, warden, traffic, wellness
    )


def _gossip(
    setup: Setup,
    ctx: Context,
    budget: Budget,
    membership: Membership,
    greeter: Greeter,
    notary: Notary,
    counts: Counter[tuple[str, Site]],
) -> Gossip:
    # peers.yaml may have changed while this site was down: no removed site's model visits.
    waiting = tuple(e for e in setup.snapshot.inbox if e.frm in setup.sites)
    gossip = Gossip(
        ctx,
        setup.gossip,
        membership,
        greeter,
        exchanges=setup.exchange == "gossip",
        budget=budget,
        max_model_bytes=setup.max_model_bytes,
        inbox=Inbox(setup.gossip, waiting),
        counts=counts,
        notary=notary,
    )
    membership.watchers.append(gossip.on_change)
    return gossip


def _rounds(setup: Setup, ctx: Context, budget: Budget, membership: Membership, notary: Notary) -> Rounds:
    rounds = Rounds(
        ctx,
        setup.rounds_params,
        membership,
        budget=budget,
        every_rounds=setup.every_rounds,
        finetune_rounds=setup.finetune_rounds,
        max_model_bytes=setup.max_model_bytes,
        record=setup.snapshot.rounds,
        notary=notary,
    )
    membership.watchers.append(rounds.on_change)
    return rounds


def _training(
    setup: Setup,
    ctx: Context,
    budget: Budget,
    membership: Membership,
    gossip: Gossip,
    rounds: Rounds | None,
) -> Training:
    training = Training(
        ctx,
        gossip,
        membership,
        budget=budget,
        snapshot=setup.snapshot,
        coordinated=rounds,
        dice_run=setup.quarantine.dice_run if setup.quarantine.dice_offence else None,
    )
    if rounds is not None:
        rounds.worker = training
    return training
