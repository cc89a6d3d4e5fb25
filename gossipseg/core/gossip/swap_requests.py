"""The requests of a swap, and who answers them."""

from __future__ import annotations

from gossipseg.core import messages
from gossipseg.core.context import Context
from gossipseg.core.gossip.swap import SwapExchange
from gossipseg.core.types import Site

SwapRequest = messages.SwapOffer | messages.SwapSnapshot | messages.SwapReady | messages.SwapTold


def answer(ctx: Context, swaps: SwapExchange | None, frm: Site, token: int, body: SwapRequest) -> None:
    """Answer a request of a swap. A site that makes no swaps refuses each of them."""
    if swaps is None:
        ctx.respond(token, refusal(body))
    elif isinstance(body, messages.SwapOffer):
        swaps.offers.on_offer(frm, token, body)
    elif isinstance(body, messages.SwapSnapshot):
        swaps.trade.on_snapshot(frm, token, body)
    elif isinstance(body, messages.SwapReady):
        swaps.decision.on_ready(frm, token, body)
    else:
        swaps.decision.on_told(frm, token, body)


def refusal(body: SwapRequest) -> messages.Reply:
    """The answer of a site that knows of no swap."""
    if isinstance(body, messages.SwapOffer):
        return messages.SwapOfferReply("reject", "exchanges_nothing")
    if isinstance(body, messages.SwapSnapshot):
        return messages.SwapSnapshotReply("reject", "no_such_swap")
    return messages.SwapState("dropped", "exchanges_nothing")
