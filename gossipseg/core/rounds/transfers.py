"""Files of a round in transfer: those that this site asked for, and those that others asked of it.

A site asks for a file with Fetch; the other side then pushes it, as all models travel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from gossipseg.core import events, messages
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.effects import StartTransfer
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.types import ModelRef, Site

SILENT_SHARE = 4.0
"""Request timeouts without data after which a stream is asked for again."""
MAX_FAILURES = 3
"""Failures allowed per source."""
Then = Callable[["Download", str], None]


def describe(model: ModelRef) -> dict[str, Any]:
    """The fields of a file of a round for the event log."""
    return {"hash": model.hash, "bytes": model.size_bytes, "round": model.round, "holds": model.kind}


@dataclass(slots=True)
class Download:
    """A file that this site wants."""

    model: ModelRef
    round: int
    attempt: int
    sources: list[Site]
    thens: list[Then]
    """Callbacks, each called once: with "" when the file is here, or with the reason of failure."""
    about: Any = None
    """The caller's own value, passed back."""
    frm: Site = ""
    """The site that was asked last; "" while none is asked."""
    streaming: bool = False
    due: float = 0.0
    """When to ask (again)."""
    until: float = math.inf
    failures: int = 0


class Downloads:
    """Files that this site has asked for. Few updates come at once."""

    def __init__(self, ctx: Context, params: RoundsParams, acceptor: Acceptor) -> None:
        self._ctx, self._params, self._acceptor = ctx, params, acceptor
        self.wants: dict[str, Download] = {}

    def want(
        self,
        model: ModelRef,
        round: int,
        attempt: int,
        sources: Iterable[Site],
        then: Then,
        about: Any = None,
    ) -> None:
        """Ask for a file; a second call adds sources and callbacks to the first."""
        known = self.wants.get(model.hash)
        if known is not None:
            known.sources += [s for s in sources if s not in known.sources]
            known.thens += [then] if then not in known.thens else []
            return
        self.wants[model.hash] = Download(
            model, round, attempt, list(sources), [then], about, due=self._ctx.now
        )

    def shun(self, site: Site) -> None:
        """Stop asking a quarantined site, and expect none of its streams."""
        for hash, want in list(self.wants.items()):
            if site not in want.sources:
                continue
            want.sources.remove(site)
            if not want.sources:
                del self.wants[hash]
                for then in want.thens:
                    then(want, "quarantined")
            elif want.frm == site:
                want.frm, want.streaming = "", False
                want.due, want.until = self._ctx.now, math.inf

    def drop(self, keep: Callable[[Download], bool]) -> None:
        """Forget the files that are no longer wanted."""
        self.wants = {hash: want for hash, want in self.wants.items() if keep(want)}

    def expected(self, frm: Site, hash: str) -> ModelRef | None:
        """The file whose stream may come from `frm` now."""
        want = self.wants.get(hash)
        return want.model if want is not None and want.frm == frm else None

    def streaming(self, hash: str) -> bool:
        """Whether the file is being received."""
        want = self.wants.get(hash)
        return want is not None and want.streaming

    # -------------------------------------------------------------- asking

    def settle(self) -> None:
        """Send the requests that are due."""
        now = self._ctx.now
        for want in list(self.wants.values()):
            if now < min(want.due, want.until) or want.model.hash not in self.wants:
                continue
            if want.frm:
                self._failed(want, "silent" if now < want.until else "too_slow")
            elif want.model.kind == "global" or self._updates_asked() < self._params.max_parallel_transfers:
                self._ask(want)

    def next_deadline(self) -> float:
        full = self._updates_asked() >= self._params.max_parallel_transfers
        return min(
            (
                min(w.due, w.until)
                for w in self.wants.values()
                if w.frm or w.model.kind == "global" or not full
            ),
            default=math.inf,
        )

    def _updates_asked(self) -> int:
        return sum(1 for w in self.wants.values() if w.frm and w.model.kind == "update")

    def _ask(self, want: Download) -> None:
        now, timeout_s = self._ctx.now, self._params.request_timeout_s
        want.frm, want.streaming = want.sources[0], False
        want.due, want.until = now + SILENT_SHARE * timeout_s, now + self._params.transfer_timeout_s
        body = messages.Fetch(
            self._acceptor.run,
            self._acceptor.quorum.key,
            want.model.kind,
            want.round,
            want.attempt,
            want.model.hash,
        )
        self._ctx.request(want.frm, body, timeout_s, self._on_answer, want)

    def _on_answer(self, call: Call, outcome: CallOutcome) -> None:
        want: Download = call.about
        if self.wants.get(want.model.hash) is not want or want.frm != call.to:
            return
        if not isinstance(outcome, messages.FetchReply):
            # The stream may have begun all the same: only the answer was lost.
            if not want.streaming:
                self._failed(want, getattr(outcome, "reason", "unreachable"))
        elif outcome.verdict == "busy":
            self._put_off(want)
        elif outcome.verdict == "reject":
            want.failures += MAX_FAILURES - 1
            self._failed(want, outcome.reason or "reject")

    def _failed(self, want: Download, reason: str) -> None:
        want.failures += 1
        if want.failures < MAX_FAILURES * len(want.sources):
            self._put_off(want)
            return
        del self.wants[want.model.hash]
        for then in want.thens:
            then(want, reason)

    def _put_off(self, want: Download) -> None:
        """Try the next source after a pause."""
        want.sources.append(want.sources.pop(0))
        want.frm, want.streaming = "", False
        pause_s = self._params.poll_interval_s * (0.5 + self._ctx.rng.random())
        want.due, want.until = self._ctx.now + pause_s, math.inf

    # -------------------------------------------------------------- what comes

    def began(self, frm: Site, hash: str) -> bool:
        """Note that a stream has begun or continues; False: it is not expected."""
        if self.expected(frm, hash) is None:
            return False
        want = self.wants[hash]
        want.streaming = True
        want.due = self._ctx.now + SILENT_SHARE * self._params.request_timeout_s
        return True

    def arrived(self, frm: Site, model: ModelRef) -> bool:
        """Note that a file is whole and in the store; False: it was not expected."""
        if self.expected(frm, model.hash) is None:
            return False
        want = self.wants.pop(model.hash)
        self._ctx.note("model_arrived", frm, **describe(want.model))
        for then in want.thens:
            then(want, "")
        return True

    def broken(self, event: events.ModelBroken) -> bool:
        """Handle a file that failed its checks, or whose stream ended for good; False: it was not
        expected."""
        if self.expected(event.frm, event.hash) is None:
            return False
        want = self.wants[event.hash]
        self._ctx.note("model_broken", event.frm, event.reason, hash=event.hash, detail=event.detail)
        self._failed(want, event.reason)
        self._ctx.refused(event.frm, event.reason, want.model)
        return True


@dataclass(slots=True)
class Uploads:
    """Files that others fetch here."""

    ctx: Context
    params: RoundsParams
    transfers: dict[int, StartTransfer] = field(default_factory=dict)
    _asked_again: set[int] = field(default_factory=set)
    """Transfers that were asked for again while they were under way."""

    def to(self, site: Site, hash: str) -> bool:
        """Whether a file is being sent to the site."""
        return any(t.to == site and t.model.hash == hash for t in self.transfers.values())

    def start(self, to: Site, model: ModelRef) -> bool:
        """Start or continue a stream. False: the limit of transfers is reached."""
        for id, t in self.transfers.items():
            if (t.to, t.model.hash) == (to, model.hash):
                self._asked_again.add(id)
                return True
        if len(self.transfers) >= self.params.max_parallel_transfers:
            return False
        id = self.ctx.next_id()
        self.transfers[id] = effect = StartTransfer(id, to, model)
        self.ctx.effects.append(effect)
        return True

    def ended(self, event: events.TransferDone | events.TransferFailed) -> StartTransfer | None:
        """End a transfer and return it; None: no such transfer."""
        transfer = self.transfers.pop(event.id, None)
        if transfer is None:
            return None
        asked_again = event.id in self._asked_again
        self._asked_again.discard(event.id)
        if isinstance(event, events.TransferDone):
            self.ctx.note("transfer_done", transfer.to, **describe(transfer.model))
        else:
            self.ctx.note(
                "transfer_failed",
                transfer.to,
                event.reason,
                detail=event.detail,
                **describe(transfer.model),
            )
            if asked_again and event.reason == "not_offered":
                # It was turned away before the other side, which had forgotten it, asked for it again.
                self.start(transfer.to, transfer.model)
        return transfer
