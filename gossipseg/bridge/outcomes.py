"""The outcome of a call to a peer, as an event's reason."""

from __future__ import annotations

import asyncio
import logging

from gossipseg.errors import LocalError, PeerError, PeerRefused

log = logging.getLogger(__name__)


def why(error: BaseException, *, in_core_words: bool = False) -> tuple[str, str]:
    """(reason, detail) of a failed call. Re-raises the cancellation of our own task.

    `in_core_words`: use only the reasons that events.RequestFailed knows. A peer that answers and says no, in
    whatever words, has refused (and is alive).
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        return "unreachable", "its connection was closed here"  # a channel went while the call was under way
    if isinstance(error, PeerRefused) and in_core_words and error.reason != "refused":
        return "refused", f"{error.reason}: {error.detail}" if error.detail else error.reason
    if isinstance(error, PeerError):
        return error.reason, error.detail
    if isinstance(error, OSError | LocalError):
        return "unreadable", str(error)
    log.error("a call failed", exc_info=error)
    return "internal", repr(error)
