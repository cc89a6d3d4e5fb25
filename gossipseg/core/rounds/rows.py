"""The other sites in an attempt, as its coordinator knows them. Values, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gossipseg.core.membership.member import Member
from gossipseg.core.types import MemberState, ModelRef, Proposal, Site

COMING = ("training", "has_update", "fetching")
"""States of sites that will deliver."""
CANNOT = ("paused", "failed", "finished", "ending", "leaving")
"""Reasons for having no update that will not pass soon."""


@dataclass(slots=True)
class Row:
    """Another site in an attempt."""

    site: Site
    promised: bool = False
    stored: bool = False
    refused: str = ""
    """Why it makes no promise, for as long as the attempt lasts."""
    waiting_for: str = ""
    """Why it has no update yet, in its own word."""
    update: ModelRef | None = None
    delivered: ModelRef | None = None
    failed: str = ""
    """Why its update will not be in the model."""
    broken: int = 0
    accepted: Proposal | None = None
    heard_at: float = -math.inf
    """When it last answered anything."""
    agreed_at: float = -math.inf
    """When it last answered with yes: promised, or stored, or was about to."""
    asking: bool = False
    ask_at: float = 0.0


def state_of(
    row: Row, member: Member | None, *, fetching: bool, lately: bool, quiet: bool
) -> tuple[str, str]:
    """(state, reason) of a site while updates are gathered; with a reason it will not deliver.

    `fetching`: its update is asked for; `lately`: it has answered just now, whatever others suspect; `quiet`:
    it has answered nothing for longer than the patience.
    """
    if row.delivered is not None:
        return "delivered", ""
    if row.failed or row.refused:
        return "left_out", row.failed or row.refused
    if member is None:
        return "left_out", "unlisted"
    if member.state is not MemberState.ALIVE and not (lately and member.state is MemberState.SUSPECT):
        return "left_out", member.state.value
    if row.update is not None:
        return ("fetching" if fetching else "has_update"), ""
    if member.refused:
        return "left_out", "contract_mismatch"
    phase = member.info.phase.value if member.info is not None else ""
    if phase in CANNOT or row.waiting_for in CANNOT:
        return "left_out", phase if phase in CANNOT else row.waiting_for
    if quiet:
        return "left_out", "no_answer"
    return ("training" if row.promised or row.waiting_for else "asked"), ""
