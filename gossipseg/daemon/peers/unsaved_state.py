"""Which replies a site may not send before its state is on disk. A crash must not undo a promise."""

from __future__ import annotations

from gossipseg.core import messages


def binding(body: messages.Body) -> bool:
    """Whether a message of a round makes a promise that its sender must not forget in a crash."""
    match body:
        case messages.Prepare() | messages.Accept() | messages.Commit():
            return True
        case messages.PrepareReply(promise=promise):
            return promise
        case messages.AcceptReply(verdict=verdict):
            return verdict == "stored"
    return False


def unbound(body: messages.Reply) -> messages.Reply:
    """The same reply, or a refusal in place of one that depends on an unsaved state."""
    if not binding(body):
        return body
    if isinstance(body, messages.PrepareReply):
        return messages.PrepareReply(False, body.promised, "not_saved")
    return messages.AcceptReply("reject", "not_saved")
