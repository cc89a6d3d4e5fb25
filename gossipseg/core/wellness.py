"""Whether this site exchanges well with the others: repeated failures, missing models, and since when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.events import RequestFailed, TransferDone, TransferFailed
from gossipseg.core.exchange_times import ExchangeTimes
from gossipseg.core.gossip.exchange import GossipExchange
from gossipseg.core.gossip.swap import SwapExchange
from gossipseg.core.membership.member import FailureRun, Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import GossipParams, MembershipParams
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.types import MemberState, Phase, Site

MIN_GRACE_S = 15.0
GRACE_INTERVALS = 2.0
"""Push/pull intervals after the start before a listed site counts as missing: each interval dials one missing
site."""
FAILED_CALLS = 3
FAILING_S = 10.0
"""Seconds, beside FAILED_CALLS, after which consecutive failed calls are a concern."""
FAILED_TRANSFERS = 3
QUIET_ROUNDS = 20
"""Exchanges that were due without a model sent, received or made in common that are a concern …"""
QUIET_SHARE, LEAST_QUIET = 1 / 3, 5
"""… or this share of all of a short training's, if that is fewer, and LEAST_QUIET at least …"""
QUIET_DRAWS = 10.0
"""… where chance draws the sender: the multiple of the average wait, if that is more."""
WATCHED_SITES = 8
"""Other sites whose rounds are compared with this site's. A slow site sends seldom, which is no cause for
alarm."""
_NO_FAILURE = frozenset({"window_closed", "cancelled"})
_OUT = (Phase.FINISHED, Phase.ENDING, Phase.LEAVING)

Code = Literal[
    "never_seen",
    "calls_in_only",
    "sends_fail",
    "takes_fail",
    "nothing_sent",
    "nothing_received",
    "no_common_model",
    "round_cannot_close",
    "lists_differ",
]


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing that is not as it should be."""

    code: Code
    site: Site
    """The other site concerned; "" for all of them."""
    text: str
    why: str = ""
    """What the last failure said."""


@dataclass(slots=True)
class _Mark:
    """The last model in one direction, in this site's own rounds."""

    round: int | None = None
    """This site's round at that time; None: before the worker was up."""
    others: dict[Site, int] = field(default_factory=dict)
    """The rounds of a few others at that time."""
    due: int = 0
    """In gossip: the exchanges that were due until then."""


class Wellness:
    """Counts since the daemon started, and the concerns that follow from them."""

    def __init__(
        self,
        ctx: Context,
        params: MembershipParams,
        membership: Membership,
        gossip_params: GossipParams,
        gossip: GossipExchange,
        rounds: Rounds | None,
        exchange: str,
        budget: Budget,
        times: ExchangeTimes,
        swaps: SwapExchange | None = None,
    ) -> None:
        self._ctx, self._membership = ctx, membership
        self._gossip_params, self._gossip, self._rounds = gossip_params, gossip, rounds
        self._exchange, self._swaps = exchange, swaps
        self._budget, self._times = budget, times
        self.grace_s = max(MIN_GRACE_S, GRACE_INTERVALS * params.push_pull_interval_s)
        self._started: float | None = None
        self._sent, self._received = _Mark(), _Mark()

    # -------------------------------------------------------------- what happens

    def start(self) -> None:
        self._started = self._ctx.now

    def ready(self) -> None:
        """Count rounds from here, if the worker is up for the first time."""
        for mark in (self._sent, self._received):
            if mark.round is None:
                self._set(mark)

    def called(self, frm: Site) -> None:
        """Note a call from `frm`."""
        if (member := self._membership.members.get(frm)) is not None:
            member.called_at = self._ctx.now
            self._watch(member)

    def answered(self, by: Site) -> None:
        """Note an answer to a call of this site."""
        if (member := self._membership.members.get(by)) is not None:
            member.calls.ends()
            member.deaf.ends()
            self._watch(member)

    def unanswered(self, by: Site, failure: RequestFailed) -> None:
        """Note a failed call of this site. A refused call has reached its site; one that this site's disk
        held back says nothing of it."""
        member = self._membership.members.get(by)
        if member is None or failure.reason == "not_saved":
            return
        if failure.reason == "refused":
            member.calls.ends()
            member.deaf.ends()
            return
        reason = f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason
        if member.calls.failed and _called_since(member, member.calls):
            member.deaf.fails(self._ctx.now, reason)
        member.calls.fails(self._ctx.now, reason)

    def on_change(self, member: Member, ended: bool) -> None:
        """Handle a member's change. Failures with an ended incarnation say nothing of the next."""
        if ended:
            for run in (member.calls, member.deaf, member.sends, member.takes):
                run.ends()

    def sent(self, to: Site, event: TransferDone | TransferFailed, *, personal: bool = False) -> None:
        """Note the end of a model's transfer to `to`. A personal model is no exchange."""
        if isinstance(event, TransferDone) and not personal:
            self._set(self._sent)
        member = self._membership.members.get(to)
        if member is None:
            return
        if isinstance(event, TransferDone):
            member.sends.ends()
        elif event.reason not in _NO_FAILURE:
            reason = f"{event.reason}: {event.detail}" if event.detail else event.reason
            member.sends.fails(self._ctx.now, reason)

    def took(self, frm: Site, *, personal: bool = False) -> None:
        """Note the arrival of a model from `frm`. A personal model is no exchange."""
        if not personal:
            self._set(self._received)
        if (member := self._membership.members.get(frm)) is not None:
            member.takes.ends()

    def not_taken(self, frm: Site, reason: str) -> None:
        """Note a promised model from `frm` that could not be received."""
        if (member := self._membership.members.get(frm)) is not None:
            member.takes.fails(self._ctx.now, reason)

    def _set(self, mark: _Mark) -> None:
        mark.round = self._ctx.info.round
        mark.due = self._due
        few = itertools.islice(self._membership.alive, WATCHED_SITES)
        infos = {site: self._membership.members[site].info for site in few}
        mark.others = {site: info.round for site, info in infos.items() if info is not None}

    @property
    def _due(self) -> int:
        """In gossip: the exchanges that were due since the start."""
        return self._swaps.turns.due if self._swaps is not None else self._gossip.due

    def _watch(self, member: Member) -> None:
        """Compare a site's rounds from now on, if it came after the marks were set."""
        for mark in (self._sent, self._received):
            if member.info is not None and len(mark.others) < WATCHED_SITES:
                mark.others.setdefault(member.site, member.info.round)

    # -------------------------------------------------------------- concerns

    def concerns(self, now: float) -> tuple[Concern, ...]:
        """Everything that is not as it should be at this time."""
        if self._started is None or self._membership.self_record.leaving:
            return ()
        found = [c for _, m in sorted(self._membership.members.items()) for c in self._of_member(m, now)]
        found += self._quiet()
        if now - self._started >= self.grace_s:
            found += self._round()
        return tuple(found)

    def _of_member(self, member: Member, now: float) -> Iterator[Concern]:
        assert self._started is not None
        site, silent_s = member.site, now - max(self._started, member.since)
        if member.state is MemberState.UNSEEN and silent_s >= self.grace_s and not member.refused:
            text = f"never seen since the start ({_span(silent_s)} ago)"
            yield Concern("never_seen", site, text, member.calls.reason or member.reason)
        if self._calls_in_only(member, now):
            yield Concern(
                "calls_in_only",
                site,
                f"alive only because it calls in: this site's own {member.calls.failed} calls to it have "
                f"failed for {_span(now - member.calls.since)}",
                member.calls.reason,
            )
        if self._exchanges_with(member):
            yield from _of_models(member)
        if member.live and member.info is not None and _differ(self._ctx.info.listed, member.info.listed):
            yield Concern("lists_differ", site, lists_text(self._ctx.info.listed, member.info.listed))

    def _exchanges_with(self, member: Member) -> bool:
        """Whether models move between the two sites; between others nothing would ever end a run of
        failures."""
        return member.live and _takes_part(member) and self._ctx.info.phase not in _OUT

    @staticmethod
    def _calls_in_only(member: Member, now: float) -> bool:
        """Whether a site calls in and cannot be called. A site that has returned gets time: it calls in
        before it is called."""
        run = member.deaf
        failing = run.failed >= FAILED_CALLS and now - run.since >= FAILING_S
        return member.live and failing and _called_since(member, run)

    def _quiet(self) -> Iterator[Concern]:
        """Rounds in which no model was sent, or none came in."""
        expected = [m for m in self._membership.members.values() if _takes_part(m)]
        if not expected or self._ctx.info.phase is not Phase.TRAINING:
            return
        if self._rounds is not None:
            yield from self._uncommon(self._rounds, expected)
        elif self._swaps is not None:
            yield from self._no_swaps("nothing_sent", "sent", self._sent, expected)
            yield from self._no_swaps("nothing_received", "received", self._received, expected)
        elif self._exchange == "gossip" and self._gossip_params.sender_rate > 0:
            rate = self._gossip_params.sender_rate
            p = self._gossip.pool.probability(self._ctx.info.cases, rate)
            yield from self._quiet_way("nothing_sent", "sent", self._sent, p or 1.0, expected)
            yield from self._quiet_way(
                "nothing_received", "received", self._received, min(1.0, rate), expected
            )

    @property
    def _most_quiet(self) -> int:
        """Exchanges that may be due and come to nothing before it is a concern."""
        last = self._budget.last
        if math.isinf(last):
            return QUIET_ROUNDS
        share = math.ceil(QUIET_SHARE * self._times.until(int(last)))
        return min(QUIET_ROUNDS, max(LEAST_QUIET, share))

    def _quiet_way(
        self, code: Code, word: str, mark: _Mark, chance: float, expected: list[Member]
    ) -> Iterator[Concern]:
        if mark.round is None:
            return
        certain = chance >= 1 and code == "nothing_sent"  # to whom it goes is drawn all the same
        draws = 0 if certain else math.ceil(QUIET_DRAWS / chance)
        quiet, limit = self._due - mark.due, max(self._most_quiet, draws)
        rounds = self._ctx.info.round - max(mark.round, self._gossip_params.warmup_rounds)
        if quiet >= limit and not self._others_are_slower(mark, limit * rounds / quiet):
            of = "rounds" if quiet == rounds else "exchanges that were due"
            yield Concern(code, "", f"no model was {word} in the last {quiet} {of}; {_standing(expected)}")

    def _no_swaps(self, code: Code, word: str, mark: _Mark, expected: list[Member]) -> Iterator[Concern]:
        """Exchanges that were due and came to nothing: in the rounds between them silence is no news."""
        quiet = self._due - mark.due
        if mark.round is not None and quiet >= self._most_quiet:
            text = f"no model was {word} in the last {quiet} exchanges that were due; {_standing(expected)}"
            yield Concern(code, "", text)

    def _others_are_slower(self, mark: _Mark, limit: float) -> bool:
        """Whether the live sites have trained fewer rounds than the limit, on average: they have sent less,
        too."""
        members = (self._membership.members.get(site) for site in mark.others)
        warmup = self._gossip_params.warmup_rounds
        gone = [
            max(0, m.info.round - max(mark.others[m.site], warmup))
            for m in members
            if m and m.live and m.info is not None
        ]
        return bool(gone) and sum(gone) < limit * len(gone)

    def _uncommon(self, rounds: Rounds, expected: list[Member]) -> Iterator[Concern]:
        quiet = rounds.due_since_commit
        if quiet is not None and quiet >= self._most_quiet and not rounds.schedule.hopeless:
            of = "rounds of this site" if rounds.each_round else "exchanges that were due"
            text = f"no global model in the last {quiet} {of}; {_standing(expected)}"
            yield Concern("no_common_model", "", text)

    def _round(self) -> Iterator[Concern]:
        """A round under a coordinator that too few sites can close."""
        rounds = self._rounds
        if rounds is None or self._ctx.info.phase is not Phase.TRAINING or rounds.schedule.hopeless:
            return
        if rounds.quorum_in_sight():
            return
        quorum_size, missing = rounds.acceptor.quorum.size, rounds.out_of_sight()
        listed = len(rounds.acceptor.quorum.sites)
        who = ", ".join(f"{site} ({why})" for site, why in missing)
        yield Concern(
            "round_cannot_close",
            "",
            f"round {rounds.acceptor.round} cannot close: it needs {quorum_size} of {listed} sites, and "
            f"{listed - len(missing)} are there; missing: {who}",
        )


def _called_since(member: Member, run: FailureRun) -> bool:
    """Whether a call from the site came in after the run of failures had begun."""
    return member.called_at is not None and member.called_at >= run.since


def _of_models(member: Member) -> Iterator[Concern]:
    """Runs of transfers that failed."""
    if member.sends.failed >= FAILED_TRANSFERS:
        text = _run_text(f"the last {member.sends.failed} models to it", member.sends.reason)
        yield Concern("sends_fail", member.site, text)
    if member.takes.failed >= FAILED_TRANSFERS:
        text = _run_text(f"the last {member.takes.failed} models from it", member.takes.reason)
        yield Concern("takes_fail", member.site, text)


def _takes_part(member: Member) -> bool:
    """Whether the site takes part: it has not ended of its own will."""
    if member.state is MemberState.LEFT:
        return False
    return member.info is None or member.info.phase not in _OUT


def _standing(members: list[Member]) -> str:
    """The states of the other sites, the first few."""
    told = [f"{m.site} is {_state(m)}" for m in members[:WATCHED_SITES]]
    more = len(members) - len(told)
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")


def _state(member: Member) -> str:
    if member.refused:
        return "refused"
    if member.quarantined:
        return "quarantined"
    if member.live and member.info is not None and member.info.phase is not Phase.TRAINING:
        return member.info.phase.value
    return member.state.value


def _run_text(what: str, reason: str) -> str:
    return f"{what} did not get through ({reason})"


def _differ(ours: str, theirs: str) -> bool:
    return bool(ours and theirs and ours != theirs)


def lists_text(ours: str, theirs: str) -> str:
    """The difference of two lists, as far as their hashes tell."""
    here, there = (text.partition("-")[0] for text in (ours, theirs))
    if here != there and there.isdigit() and len(there) <= 6:
        return f"its peers.yaml lists {there} sites, this site's lists {here}"
    return "its peers.yaml lists other sites or keys than this site's"


def _span(seconds: float) -> str:
    """75.3 → "75 s"; 600 → "10 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
