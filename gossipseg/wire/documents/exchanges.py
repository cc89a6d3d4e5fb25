"""Models in transfer, swaps, and the models in the store."""

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


class SwapRow(Part, frozen=True):
    """A swap of models with another site."""

    t: float = 0.0
    """Wall seconds of the last change."""
    asker: str = ""
    """The site that asked; with `number` the swap's name at both sites."""
    number: int = 0
    peer: str = ""
    """The other site."""
    direction: str = ""
    """out: this site asked | in: the other one did"""
    state: str = ""
    """asked | refused | open | committed | applied | dropped | in_doubt (dropped without knowing whether the
    peer has applied it) | lost (committed, and not applied here). Empty: there is none."""
    reason: str = ""
    detail: str = ""
    part: str = ""
    """What it does to this site's model: mix | copy | keep. Empty until it is open."""
    weight: float | None = None
    """Weight of the peer's model in a mix."""


class SwapCounts(Part, frozen=True):
    """How this site's swaps ended, counted across restarts."""

    mixed: int = 0
    copied: int = 0
    """Those in which this site took the peer's model over."""
    kept: int = 0
    """Those in which only the peer's model changed."""
    dropped: int = 0
    in_doubt: int = 0
    lost: int = 0


class ExchangesDoc(Document, frozen=True):
    """Newest first."""

    kind: ClassVar[str] = "exchanges"
    exchanges: tuple[ExchangeRow, ...] = ()
    swaps: tuple[SwapRow, ...] = ()
    """Under `gossip.exchange: swap`; newest first."""


class ModelRow(Part, frozen=True, rename={"frm": "from"}):
    """A file in the model store."""

    hash: str = ""
    bytes: int = 0
    kind: str = "other"
    """outgoing | inbox | visiting | update | common | personal | other"""
    frm: str = ""
    """The site that it came from; this site's own name for its own. In JSON: `from`."""
    round: int | None = None
    age_s: float = 0.0


class ModelsDoc(Document, frozen=True):
    kind: ClassVar[str] = "models"
    models: tuple[ModelRow, ...] = ()
