"""The one swap that a site has open, its stages, and what may change them. Values only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gossipseg.core.effects import BoundSwap, SwapPart
from gossipseg.core.types import ExchangeId, ModelRef, Site, SwapTerms


class Stage(StrEnum):
    """How far an open swap has come at this site."""

    ASKING = "asking"
    """Asker: the offer has no answer yet. No state has been exported."""
    TRADING = "trading"
    """The snapshots are made, sent, and checked. Either site may still drop the swap."""
    DOUBT = "doubt"
    """Asker: it has said that it is ready. From now on the other site decides."""
    COMMITTED = "committed"
    """Both sites apply it, whatever happens; this one has not reported yet that it has."""
    OVER = "over"


class Turn(StrEnum):
    """What moves a swap from one stage to another."""

    ACCEPTED = "accepted"
    READY = "ready"
    COMMIT = "commit"
    DROP = "drop"
    APPLIED = "applied"


TRANSITIONS: Mapping[tuple[Stage, Turn], Stage] = {
    (Stage.ASKING, Turn.ACCEPTED): Stage.TRADING,
    (Stage.ASKING, Turn.DROP): Stage.OVER,
    (Stage.TRADING, Turn.READY): Stage.DOUBT,
    (Stage.TRADING, Turn.COMMIT): Stage.COMMITTED,
    (Stage.TRADING, Turn.DROP): Stage.OVER,
    (Stage.DOUBT, Turn.COMMIT): Stage.COMMITTED,
    (Stage.DOUBT, Turn.DROP): Stage.OVER,
    (Stage.COMMITTED, Turn.APPLIED): Stage.OVER,
}
"""All changes of stage. Nothing drops a committed swap."""


@dataclass(slots=True)
class OpenSwap:
    """A swap between the offer and its end."""

    id: ExchangeId
    partner: Site
    asker: bool
    """Whether this site asked."""
    stage: Stage
    began_round: int
    """This site's rounds when it opened; it is dropped max_age_rounds later."""
    deadline: float
    """When it is dropped in its present stage (the core's clock)."""
    terms: SwapTerms | None = None
    """This site's terms; None after a restart."""
    part: SwapPart = "keep"
    their_part: SwapPart = "keep"
    weight: float = 0.0
    own: ModelRef | None = None
    theirs: ModelRef | None = None
    arrived: bool = False
    admitted: bool = False
    delivered: bool = False
    """Whether the partner has this site's snapshot."""
    partner_ready: bool = False
    """Asked: the asker has said that it is ready."""
    transfer: int | None = None
    """Number of the outgoing transfer under way."""
    asking: int = 0
    """Requests about this swap without an outcome yet."""
    tries: int = 0
    """Failed attempts to deliver the snapshot."""
    next_at: float = math.inf
    """When to send the next message about it if nothing else happens."""
    firm_until: float = math.inf
    """Until when another site's offer cannot displace it, while it is traded."""
    losses: int = 0
    """Deaths of the worker while it had an order for this swap."""

    @property
    def takes(self) -> bool:
        """Whether the partner's snapshot comes here."""
        return self.part != "keep"

    @property
    def gives(self) -> bool:
        """Whether this site's snapshot goes to the partner."""
        return self.their_part != "keep"

    @property
    def exports(self) -> bool:
        """Whether the worker must write a snapshot."""
        return self.gives or self.part == "mix"

    @property
    def fulfilled(self) -> bool:
        """Whether this site has all that it needs, and has given what it owes."""
        taken = self.admitted or not self.takes
        given = self.delivered or not self.gives
        made = self.own is not None or not self.exports
        return taken and made and (given or not self.asker)

    @property
    def to_send(self) -> bool:
        """Whether this site's snapshot must still begin its way."""
        if self.stage is Stage.TRADING:
            return self.gives and not self.delivered and self.transfer is None
        return self.stage is Stage.ASKING

    @property
    def binding(self) -> bool:
        """Whether a crash, or the end of training, must not end it."""
        return self.stage in (Stage.DOUBT, Stage.COMMITTED)

    def turn(self, turn: Turn) -> None:
        """Move to the next stage. Raises KeyError where the present one does not allow it."""
        self.stage = TRANSITIONS[self.stage, turn]

    def bound(self) -> BoundSwap | None:
        """What must survive a crash."""
        if not self.binding:
            return None
        committed = self.stage is Stage.COMMITTED
        return BoundSwap(
            self.id, self.partner, self.part, self.weight, self.own, self.theirs, committed=committed
        )


def restored(bound: BoundSwap, me: Site) -> OpenSwap:
    """The swap as it stood when the last run ended."""
    return OpenSwap(
        bound.swap,
        bound.partner,
        asker=bound.swap.asker == me,
        stage=Stage.COMMITTED if bound.committed else Stage.DOUBT,
        began_round=0,
        deadline=math.inf,
        part=bound.part,
        weight=bound.weight,
        own=bound.own,
        theirs=bound.theirs,
        arrived=bound.theirs is not None,
        admitted=bound.theirs is not None,
        delivered=True,
    )
