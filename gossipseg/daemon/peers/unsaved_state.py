"""Which messages a site may not send before its state is on disk. A crash must not undo a promise."""

from __future__ import annotations

from gossipseg.core import messages


def binding(body: messages.Body) -> bool:
    """Whether a message of a round, or of a swap, makes a promise that its sender must not forget in a
    crash."""
    match body:
        case messages.Prepare() | messages.Accept() | messages.Commit():
            return True
        case messages.SwapOffer() | messages.SwapReady():
            return True
        case messages.PrepareReply(promise=promise):
            return promise
        case messages.AcceptReply(verdict=verdict):
            return verdict == "stored"
        case messages.SwapOfferReply(verdict=verdict):
            return verdict == "accept"
        case messages.SwapTold(standing=standing) | messages.SwapState(standing=standing):
            return standing == "committed"
    return False


def unbound(body: messages.Reply) -> messages.Reply:
    """The same reply, or a refusal in place of one that depends on an unsaved state."""
    if not binding(body):
        return body
    match body:
        case messages.PrepareReply(promised=promised):
            return messages.PrepareReply(False, promised, "not_saved")
        case messages.SwapOfferReply():
            return messages.SwapOfferReply("reject", "not_saved")
        case messages.SwapState():
            return messages.SwapState("open", "not_saved")
    return messages.AcceptReply("reject", "not_saved")
