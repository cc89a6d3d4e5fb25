"""The stages of an attempt at a round, and all transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Stage(StrEnum):
    """How far an attempt has come."""

    ASKING = "asking"
    """The coordinator asks for promises."""
    RECOVERING = "recovering"
    """The coordinator fetches a model that an earlier attempt may have committed."""
    GATHERING = "gathering"
    """The coordinator gathers updates."""
    AGGREGATING = "aggregating"
    STORING = "storing"
    COMMITTED = "committed"
    GIVEN_UP = "given_up"


class StageEvent(StrEnum):
    """What moves an attempt from one stage to another."""

    PROMISED = "promised"
    """A quorum promises, and reports no stored model."""
    REPORTED = "reported"
    """A quorum promises, and at least one of its sites has stored a model."""
    COMPLETE = "complete"
    """A quorum has delivered, and every other site has delivered, cannot deliver, or missed the deadline."""
    MADE = "made"
    """The worker has aggregated the updates."""
    FOUND = "found"
    """The reported model is here."""
    STORED = "stored"
    """A quorum has stored the model."""
    GIVE_UP = "give_up"


TRANSITIONS: Mapping[tuple[Stage, StageEvent], Stage] = {
    (Stage.ASKING, StageEvent.PROMISED): Stage.GATHERING,
    (Stage.ASKING, StageEvent.REPORTED): Stage.RECOVERING,
    (Stage.GATHERING, StageEvent.REPORTED): Stage.RECOVERING,
    (Stage.GATHERING, StageEvent.COMPLETE): Stage.AGGREGATING,
    (Stage.RECOVERING, StageEvent.FOUND): Stage.STORING,
    (Stage.AGGREGATING, StageEvent.MADE): Stage.STORING,
    (Stage.STORING, StageEvent.STORED): Stage.COMMITTED,
    **{
        (stage, StageEvent.GIVE_UP): Stage.GIVEN_UP
        for stage in Stage
        if stage not in (Stage.COMMITTED, Stage.GIVEN_UP)
    },
}
"""All transitions between stages."""
OVER = (Stage.COMMITTED, Stage.GIVEN_UP)
