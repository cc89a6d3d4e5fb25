"""What must hold of a node after every step. Tests and the simulator call it; production never does."""

from __future__ import annotations

from gossipseg.core.context import Context
from gossipseg.core.gossip.exchange import GossipExchange
from gossipseg.core.gossip.open_swap import Stage
from gossipseg.core.gossip.swap import SwapExchange
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.types import MemberState
from gossipseg.core.worker_state import WorkerPhase, WorkerState


def check(ctx: Context, membership: Membership, gossip: GossipExchange, state: WorkerState) -> None:
    """Raise AssertionError naming the contradiction."""
    assert ctx.site not in membership.members, "this site is not its own member"
    for member in membership.members.values():
        _check_member(member, membership, gossip)
    assert len(membership.alive) == sum(m.state is MemberState.ALIVE for m in membership.members.values()), (
        "the alive pool holds others"
    )
    assert membership.health.score >= 0, "self-health below 0"
    _check_exchange(ctx, membership, gossip)
    _check_census(membership)
    assert not ctx.offences, "an offence is not counted"
    running = state.worker is WorkerPhase.RUNNING
    assert running == (gossip.running_round is not None), "a round runs without a worker, or the reverse"
    assert gossip.inbox.visiting is None or running, "a visit outside a round"
    if running:
        assert gossip.running_round == ctx.info.round + 1, "the running round is not the next one"


def _check_member(member: Member, membership: Membership, gossip: GossipExchange) -> None:
    site, state = member.site, member.state
    assert (site in membership.live) == member.live, f"{site}: live pool"
    assert (site in membership.alive) == (state is MemberState.ALIVE), f"{site}: alive pool"
    assert (site in membership.down) == (not member.live), f"{site}: down list"
    assert (site in gossip.pool.sites) == member.exchanges_now, f"{site}: sender pool"
    if member.live:
        assert member.alive is not None, f"{site}: live without its own word"
        assert member.alive.incarnation == member.incarnation, f"{site}: incarnation not its own word"
    if state is MemberState.SUSPECT:
        held = member.suspicion
        assert held is not None and held.accusers, f"{site}: suspect without an accuser"
        assert all(r.incarnation == member.incarnation for r in held.accusers.values()), (
            f"{site}: old accuser"
        )
        assert len(held.accusers) <= held.needed + 1, f"{site}: more accusers than count"
    if state in (MemberState.ALIVE, MemberState.UNSEEN, MemberState.LEFT):
        assert member.suspicion is None, f"{site}: {state} with a suspicion"
    assert not (member.agreed and member.refused and not member.blocked), f"{site}: agreed and refused"


def _check_census(membership: Membership) -> None:
    members, census = membership.members.values(), membership.census
    steps = [m.info.steps for m in members if m.live and m.info is not None and m.info.round > 0]
    assert census.steps.values() == sorted(steps), "the median of other steps than the members'"
    cases = [m.cases for m in members if m.cases > 0]
    assert census.cases.values() == sorted(cases), "the median of other cases than the members'"


def _check_exchange(ctx: Context, membership: Membership, gossip: GossipExchange) -> None:
    inbox = gossip.inbox
    hashes = [e.model.hash for e in inbox.entries]
    assert len(set(hashes)) == len(hashes), "one model twice in the inbox"
    assert len(inbox.waiting) <= 2, "more than a restored visitor and one model wait"
    shut_out = {m.site for m in membership.members.values() if m.quarantined}
    held = inbox.reserved.frm if inbox.reserved is not None else None
    assert shut_out.isdisjoint({held, *(e.frm for e in inbox.waiting)}), "something of a quarantined site"
    targets = [o.to for o in gossip.outgoing if o.to]
    assert len(set(targets)) == len(targets), "two models on their way to one site"
    assert all(call.to != ctx.site for call in ctx.calls.values()), "a call to itself"


def check_rounds(ctx: Context, rounds: Rounds, state: WorkerState) -> None:
    """Check the rounds under a coordinator."""
    acceptor, attempt = rounds.acceptor, rounds.attempt
    record, quorum = acceptor.record, acceptor.quorum
    assert ctx.info.committed == acceptor.committed, "it tells of another committed round than its record"
    assert quorum.sites == tuple(sorted((ctx.site, *rounds.members))), "another list of sites"
    assert 2 * quorum.size > len(quorum.sites), "two quorums without a site in common"
    for proposal in (record.committed, record.accepted):
        if proposal is not None:
            names = proposal.contributors
            assert list(names) == sorted(set(names)), "a contributor counted twice"
            assert set(names).isdisjoint(s for s, _ in proposal.absent), "a site both in it and absent"
    if record.accepted is not None:
        assert record.accepted.round == acceptor.round, "stored for a round that is over"
        assert record.accepted.attempt <= acceptor.promised, "stored without a promise"
    if record.update is not None:
        assert record.update.kind == "update" and record.update_round <= acceptor.round, "an odd update"
    assert (rounds.making is not None) == (state.worker is WorkerPhase.AGGREGATING), "combining unasked"
    assert (rounds.schedule.running is not None) == (state.worker is WorkerPhase.RUNNING), (
        "a round out of plan"
    )
    assert len(rounds.uploads.transfers) <= rounds.limit, "too many files on their way out"
    asked = [w for w in rounds.downloads.wants.values() if w.frm and w.model.kind == "update"]
    assert len(asked) <= rounds.limit, "too many updates on their way here"
    if attempt is not None:
        assert not attempt.over, "an attempt that is over is still led"
        assert (attempt.round, attempt.attempt) == (acceptor.round, acceptor.promised), "led unpromised"
        assert quorum.coordinator(attempt.round, attempt.attempt) == ctx.site, "led out of turn"
        assert ctx.site not in attempt.rows, "it asks itself"


def check_swaps(ctx: Context, swaps: SwapExchange) -> None:
    """Check the open swap."""
    open, turns = swaps.open, swaps.turns
    assert abs(turns.owed) <= turns.per_round, "more swaps owed than a round has"
    if open is None:
        return
    assert open.stage is not Stage.OVER, "a swap that is over is open"
    assert open.asker == (open.id.asker == ctx.site), "another site's number"
    assert open.partner != ctx.site, "a swap with itself"
    assert open.asker or open.stage in (Stage.TRADING, Stage.COMMITTED), "only the asker asks and doubts"
    if open.asker:
        assert open.id.number <= swaps.memory.number, "a number that was not counted"
    else:
        assert not swaps.memory.is_new(open.id), "a number that was not noted"
    if open.stage is Stage.TRADING and not open.asker:
        assert swaps.memory.standing(open.id) == "open", "it remembers the swap otherwise"
    if open.binding:
        assert not open.takes or (open.admitted and open.theirs is not None), "bound without the model"
        assert open.part != "mix" or open.own is not None, "bound without its own snapshot"
    assert not open.arrived or open.theirs is not None, "a model came that was not announced"
