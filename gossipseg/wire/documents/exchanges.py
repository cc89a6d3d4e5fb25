"""Models in transfer, and those in the store."""

from __future__ import annotations

from typing import ClassVar

from gossipseg.wire.documents.base import Document, Part


class ExchangeRow(Part, frozen=True):
    """One model offered, in either direction."""

    t: float = 0.0
    """Wall seconds of the last change."""
    direction: str = ""
    """out | in"""
    peer: str = ""
    hash: str = ""
    bytes: int = 0
    round: int = 0
    """The sender's round; the federation's for a global model."""
    state: str = ""
    """The state of the exchange. While offered: offered | accepted | busy | rejected. While sent or received:
    waiting | sending | sent | failed | receiving | stored. Afterwards: visiting | merged | refused |
    kept_out | reverted | dropped."""
    reason: str = ""
    fraction: float | None = None
    """Share of the transfer that is done, 0 to 1."""
    dice_before: float | None = None
    """Validation Dice of the round before the visit, and of the round after it."""
    dice_after: float | None = None
    holds: str = "model"
    """model (gossip) | update (to a coordinator) | global (a global model)"""
    detail: str = ""
    """More about the reason: for a refused model, the layer, its figure and the bound."""


class ExchangesDoc(Document, frozen=True):
    """Newest first."""

    kind: ClassVar[str] = "exchanges"
    exchanges: tuple[ExchangeRow, ...] = ()


class ModelRow(Part, frozen=True, rename={"frm": "from"}):
    """A file in the model store."""

    hash: str = ""
    bytes: int = 0
    kind: str = "other"
    """outgoing | inbox | visiting | update | common | other"""
    frm: str = ""
    """The site that it came from; this site's own name for its own. In JSON: `from`."""
    round: int | None = None
    age_s: float = 0.0


class ModelsDoc(Document, frozen=True):
    kind: ClassVar[str] = "models"
    models: tuple[ModelRow, ...] = ()
