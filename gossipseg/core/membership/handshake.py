"""Hello: two sites compare protocol, federation and contract before they exchange weights."""

from __future__ import annotations

from collections.abc import Callable

from gossipseg.core import messages
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.events import RequestFailed
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.messages import Hello, HelloReply
from gossipseg.core.types import Site

EAGER_SITES = 32
"""Largest federation in which every site is greeted on meeting it. In a larger one a site is greeted only
where the contract differs, or before an offer. Then the messages per site do not grow with the federation."""


class Handshake:
    """Sends a Hello on meeting a site, and again when its incarnation or its contract changes."""

    def __init__(self, ctx: Context, membership: Membership) -> None:
        self._ctx, self._membership = ctx, membership

    def compatible(self, member: Member) -> bool:
        """Whether weights may move: a Hello agreed, and both signatures are known and equal."""
        ours = self._ctx.info.contract
        return (
            member.agreed
            and not member.refused
            and ours != ""
            and member.info is not None
            and member.info.contract == ours
        )

    def meet(self, member: Member, timeout_s: float) -> None:
        """Greet a site if a Hello is due. Called on every direct contact."""
        if not member.greeting and member.info is not None and self._due(member):
            self.greet(member, timeout_s)

    def greet(
        self,
        member: Member,
        timeout_s: float,
        then: Callable[[Call, CallOutcome], None] | None = None,
        about: object = None,
    ) -> None:
        """Send a Hello now. `then`, if given, must call settle()."""
        member.greeting = True
        self._ctx.request(member.site, self._ctx.hello(), timeout_s, then or self._on_outcome, about)

    def on_hello(self, frm: Site, token: int, body: messages.Hello) -> None:
        member = self._membership.heard(frm, body.info)
        if member is not None:
            self._compare(member, body)
        self._ctx.respond(token, self._ctx.hello_reply())

    def settle(self, call: Call, outcome: CallOutcome) -> Member | None:
        """Handle the outcome of a Hello; returns the member if it answered."""
        member = self._membership.members.get(call.to)
        if member is None:
            return None
        member.greeting = False
        if isinstance(outcome, RequestFailed):
            if outcome.reason in ("untrusted", "refused"):
                self._membership.block(call.to, outcome.reason, outcome.detail)
            return None
        if not isinstance(outcome, messages.HelloReply):
            return None
        self._membership.heard(call.to, outcome.info)
        self._compare(member, outcome)
        return member

    def _on_outcome(self, call: Call, outcome: CallOutcome) -> None:
        self.settle(call, outcome)

    def _due(self, member: Member) -> bool:
        assert member.info is not None
        ours, theirs = self._ctx.info.contract, member.info.contract
        if member.hello_for is None:
            few = len(self._membership.members) <= EAGER_SITES
            return few or bool(ours and theirs and ours != theirs)
        if member.hello_for == (theirs, ours):
            return False
        return not member.agreed or bool(ours and theirs and ours != theirs)

    def _compare(self, member: Member, body: messages.Hello | messages.HelloReply) -> None:
        ctx = self._ctx
        member.hello_for = (body.info.contract, ctx.info.contract)
        before = member.refused
        member.refused = refusal(ctx.hello(), body)
        member.agreed, member.blocked = member.refused == "", False
        if member.refused and member.refused != before:
            ctx.note("peer_refused", member.site, member.refused)
        self._membership.changed(member)


SIGNATURE_KEY = "network.signature"
NOT_SET = {
    "gossip.exchange": "not set there: a version that makes no swaps, or `gossip.exchange: push`",
}
"""What a contract's missing field may mean, where this site has it."""
_UNKNOWN = ("", '""')
_NAMED = 3
_MAX_SHOWN = 200
"""Characters shown of a value. The other side may send any text, and the text goes into logs."""


def refusal(ours: Hello | HelloReply, theirs: Hello | HelloReply) -> str:
    """The first field that differs, with both values; "" when weights may move, as far as is known.

    The network signature is left open until both sides' workers have reported it.
    """
    if ours.protocol_max < theirs.protocol_min or theirs.protocol_max < ours.protocol_min:
        return (
            f"protocol: {ours.protocol_min}-{ours.protocol_max} here, "
            f"{theirs.protocol_min}-{theirs.protocol_max} there"
        )
    if ours.federation != theirs.federation:
        return f"federation: {_short(ours.federation)!r} here, {_short(theirs.federation)!r} there"
    return _difference(dict(ours.contract), dict(theirs.contract))


def _difference(ours: dict[str, str], theirs: dict[str, str]) -> str:
    differing = [k for k in sorted({**ours, **theirs}) if ours.get(k) != theirs.get(k)]
    if SIGNATURE_KEY in differing and (
        ours.get(SIGNATURE_KEY, "") in _UNKNOWN or theirs.get(SIGNATURE_KEY, "") in _UNKNOWN
    ):
        differing.remove(SIGNATURE_KEY)
    named = [_both(k, ours.get(k), theirs.get(k)) for k in differing[:_NAMED]]
    more = len(differing) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _both(key: str, ours: str | None, theirs: str | None) -> str:
    """A field with both values."""
    there = NOT_SET.get(key, "") if theirs is None else ""
    return f"{_short(key)}: {_short(ours)} here, {there or _short(theirs) + ' there'}"


def _short(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}…"
