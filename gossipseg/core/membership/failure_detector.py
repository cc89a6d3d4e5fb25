"""Which member is probed and synced with, and when: SWIM's failure detector with Lifeguard's local health.

SWIM §3.1: each period one member is pinged; if it does not answer, k others are asked to ping it. SWIM §4.3:
targets are taken round-robin from a shuffled list; new members enter at a random position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gossipseg.core import messages
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.events import RequestFailed
from gossipseg.core.membership.handshake import Handshake
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import LAST_CALL_SHARE, Membership
from gossipseg.core.params import MembershipParams
from gossipseg.core.types import MemberState, PeerInfo, Phase, Record, Site

JOIN_SITES = 3
"""Listed sites dialled at once at the start."""
FAREWELL_SITES = 4
HELPER_SHARE = 1.5
"""Ping timeouts allowed for a helper's answer: the helper needs one itself."""
SUSPECT_SHARE = LAST_CALL_SHARE
"""Ping timeouts allowed for a suspect to read the accusation."""
SYNC_SHARE = 3.0
"""Ping timeouts allowed for a push/pull, which carries everything."""


@dataclass(slots=True)
class _Indirect:
    """Helpers asked about one target that did not answer."""

    target: Site
    waiting: int
    missed: int = 0
    """Helpers that did not answer at all: a sign that this site's own link is bad."""
    reached: bool = False
    void: bool = False
    """Whether this site's event loop stalled meanwhile: silence then proves nothing."""


class FailureDetector:
    """The probe cycle, push/pull, and the answers to other sites' probes."""

    def __init__(
        self, ctx: Context, params: MembershipParams, membership: Membership, handshake: Handshake
    ) -> None:
        self._ctx, self._params, self._membership, self._handshake = ctx, params, membership, handshake
        self._order: list[Site] = []
        self._place = 0
        self._probe_at = math.inf
        self._sync_at = math.inf
        self._stalled_at = -math.inf
        self._probing: set[Site] = set()
        self._syncing: set[Site] = set()

    # -------------------------------------------------------------- time

    def start(self) -> None:
        """Dial a few listed sites at once; then probe and sync at their intervals, out of step."""
        ctx, params = self._ctx, self._params
        self._probe_at = ctx.now + ctx.rng.random() * params.probe_interval_s
        self._sync_at = ctx.now + (0.5 + ctx.rng.random() / 2) * params.push_pull_interval_s
        listed = list(self._membership.members)
        for site in ctx.rng.sample(listed, min(JOIN_SITES, len(listed))):
            self.sync(site)

    def stop(self) -> None:
        self._probe_at = self._sync_at = math.inf

    def next_deadline(self) -> float:
        return min(self._probe_at, self._sync_at)

    def on_tick(self) -> None:
        now = self._ctx.now
        for site in self._membership.expire():
            self._tell(site, SUSPECT_SHARE * self._timeout_s())
        if now >= self._probe_at:
            self._probe_at = now + self._params.probe_interval_s * self._membership.health.factor
            self._probe_next()
        if now >= self._sync_at:
            self._sync_at = now + self._membership.news.push_pull_interval_s()
            self._push_pull()

    def stalled(self) -> None:
        """Void the calls under way: this site's event loop stalled, so their failures prove nothing."""
        self._stalled_at = self._ctx.now
        self._membership.stalled()

    # -------------------------------------------------------------- probes

    def _probe_next(self) -> None:
        site = self._next_target()
        if site is not None:
            self._ping(site)
        if len(self._membership.live) == 0:
            self._dial_one_down()

    def _next_target(self) -> Site | None:
        live, rng, order = self._membership.live, self._ctx.rng, self._order
        for site in self._membership.joined:
            order.insert(self._place + int(rng.random() * (len(order) - self._place + 1)), site)
        self._membership.joined.clear()
        for _ in range(2):
            while self._place < len(order):
                site = order[self._place]
                self._place += 1
                if site in live and site not in self._probing:
                    return site
            order[:] = live
            rng.shuffle(order)
            self._place = 0
        return None

    def _timeout_s(self) -> float:
        return self._params.probe_timeout_s * self._membership.health.factor

    def _ping(self, site: Site) -> None:
        self._probing.add(site)
        body = messages.Ping(self._membership.news.piggyback_for(site), self._ctx.info)
        self._ctx.request(site, body, self._timeout_s(), self._on_ack)

    def _on_ack(self, call: Call, outcome: CallOutcome) -> None:
        if isinstance(outcome, messages.Ack):
            self._probing.discard(call.to)
            self._membership.health.change(-1)
            member = self.contact(call.to, outcome.records, outcome.info)
            if member is not None:
                member.rtt_s = call.rtt_s
            return
        if self._is_proof_of_life(call, outcome) or call.sent_at <= self._stalled_at:
            self._probing.discard(call.to)
        else:
            self._ask_helpers(call.to)

    def _is_proof_of_life(self, call: Call, outcome: CallOutcome) -> bool:
        """Whether a failure proves that the site is up. A refusal does; a wrong key may be anybody's."""
        if not isinstance(outcome, RequestFailed) or outcome.reason not in ("untrusted", "refused"):
            return False
        self._membership.block(call.to, outcome.reason, outcome.detail)
        return outcome.reason == "refused"

    def _ask_helpers(self, target: Site) -> None:
        params = self._params
        helpers = self._membership.alive.sample(self._ctx.rng, params.indirect_checks, target)
        if not helpers:
            self._probing.discard(target)
            self._membership.health.change(+1)
            self._accuse(target)
            return
        question = _Indirect(target, waiting=len(helpers))
        for helper in helpers:
            body = messages.IndirectPing(target, self._membership.news.piggyback_for(helper))
            self._ctx.request(helper, body, HELPER_SHARE * self._timeout_s(), self._on_helper, question)

    def _on_helper(self, call: Call, outcome: CallOutcome) -> None:
        question: _Indirect = call.about
        question.waiting -= 1
        if isinstance(outcome, messages.IndirectAck):
            question.reached |= outcome.reached
            self.contact(call.to, outcome.records, None)
        else:
            question.missed += 1
            question.void |= call.sent_at <= self._stalled_at
        if question.waiting:
            return
        self._probing.discard(question.target)
        if question.reached:
            return
        # Lifeguard §IV-A: a failed probe counts against local health only where helpers were silent too.
        self._membership.health.change(question.missed)
        if not question.void:
            self._accuse(question.target)

    def _accuse(self, target: Site) -> None:
        """Suspect a site, and tell it so: the ping waits until a starved event loop reads it."""
        if self._membership.accuse(target):
            self._tell(target, SUSPECT_SHARE * self._timeout_s())

    def _tell(self, site: Site, timeout_s: float) -> None:
        """Send a ping only for the records it carries; the probe cycle judges silence."""
        body = messages.Ping(self._membership.news.piggyback_for(site), self._ctx.info)
        self._ctx.request(site, body, timeout_s, self._on_told)

    def _on_told(self, call: Call, outcome: CallOutcome) -> None:
        if isinstance(outcome, messages.Ack):
            self.contact(call.to, outcome.records, outcome.info)

    def _refute_at_once(self, accuser: Site) -> None:
        """Send the refutation to the accuser and a few others now: a starved site's answers come too late."""
        self._membership.self_record.refuted = None
        k = self._params.indirect_checks
        for site in (accuser, *self._membership.alive.sample(self._ctx.rng, k, accuser)):
            if site in self._membership.members:
                self._tell(site, self._timeout_s())

    # -------------------------------------------------------------- push/pull

    def _push_pull(self) -> None:
        alive = self._membership.alive
        if len(alive):
            self.sync(alive.draw(self._ctx.rng))
        self._dial_one_down()

    def _dial_one_down(self) -> None:
        down = self._membership.down
        if down:
            site = next(iter(down))
            down[site] = down.pop(site)
            self.sync(site)

    def sync(self, site: Site) -> None:
        """Push/pull with one site."""
        if site in self._syncing:
            return
        self._syncing.add(site)
        body = messages.Sync(self._known_to(site), self._ctx.info)
        self._ctx.request(site, body, SYNC_SHARE * self._timeout_s(), self._on_synced)

    def _on_synced(self, call: Call, outcome: CallOutcome) -> None:
        self._syncing.discard(call.to)
        if isinstance(outcome, messages.SyncReply):
            before = len(self._membership.live)
            self.contact(call.to, outcome.records, outcome.info, synced=True)
            if len(self._membership.live) - before > before // 32:
                # Still joining: much was new, so the next one is due soon.
                soon = self._ctx.now + self._params.probe_interval_s
                self._sync_at = min(self._sync_at, soon)
            return
        if isinstance(outcome, RequestFailed):
            self._is_proof_of_life(call, outcome)
            member = self._membership.members.get(call.to)
            if member is not None and member.state is MemberState.UNSEEN:
                member.reason = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason

    # -------------------------------------------------------------- contact

    def contact(
        self, site: Site, records: tuple[Record, ...], info: PeerInfo | None, *, synced: bool = False
    ) -> Member | None:
        """Handle a message from a site: take in what it says, and make both sites know each other."""
        member = self._membership.heard(site, info)
        if records:
            self._membership.receive(records, site if synced else None)
        if self._membership.self_record.refuted is not None:
            self._refute_at_once(self._membership.self_record.refuted)
        if member is None or self._membership.self_record.leaving:
            return member
        goodbye = info is not None and info.phase is Phase.LEAVING
        if not member.live and not goodbye:
            self.sync(site)
        elif member.live:
            self._handshake.meet(member, self._timeout_s())
        return member

    def on_ping(self, frm: Site, token: int, body: messages.Ping) -> None:
        self.contact(frm, body.records, body.info)
        self._ctx.respond(token, messages.Ack(self._membership.news.piggyback_for(frm), self._ctx.info))

    def on_sync(self, frm: Site, token: int, body: messages.Sync) -> None:
        self.contact(frm, body.records, body.info, synced=True)
        self._ctx.respond(token, messages.SyncReply(self._known_to(frm), self._ctx.info))

    def _known_to(self, frm: Site) -> tuple[Record, ...]:
        member = self._membership.members.get(frm)
        if member is None or member.live:
            return self._membership.news.known()
        held: list[Record] = [r for r in (member.alive, member.accusation) if r is not None]
        return (*held, *self._membership.news.known())

    def on_indirect_ping(self, frm: Site, token: int, body: messages.IndirectPing) -> None:
        self.contact(frm, body.records, None)
        target = body.target
        if target == self._ctx.site or target not in self._membership.members:
            self._answer_helper(token, frm, target, reached=target == self._ctx.site)
            return
        ping = messages.Ping(self._membership.news.piggyback_for(target), self._ctx.info)
        self._ctx.request(target, ping, self._params.probe_timeout_s, self._on_helped, (token, frm))

    def _on_helped(self, call: Call, outcome: CallOutcome) -> None:
        token, frm = call.about
        reached = isinstance(outcome, messages.Ack)
        if isinstance(outcome, messages.Ack):
            self.contact(call.to, outcome.records, outcome.info)
        else:
            reached = self._is_proof_of_life(call, outcome)
        self._answer_helper(token, frm, call.to, reached=reached)

    def _answer_helper(self, token: int, frm: Site, target: Site, *, reached: bool) -> None:
        self._ctx.respond(
            token, messages.IndirectAck(target, reached, self._membership.news.piggyback_for(frm))
        )

    # -------------------------------------------------------------- leaving

    def say_goodbye(self, then: Callable[[Call, CallOutcome], None]) -> None:
        """Tell a few peers at once that this site leaves."""
        self._membership.self_record.say_goodbye()
        for site in self._membership.alive.sample(self._ctx.rng, FAREWELL_SITES):
            body = messages.Ping(self._membership.news.piggyback_for(site), self._ctx.info)
            self._ctx.request(site, body, self._params.probe_timeout_s, then)
