"""The snapshots of an open swap: made, announced, streamed, and admitted by the worker.

The protocol, its messages and its failures: docs/design/swap.md.
"""

from __future__ import annotations

import math
from collections import Counter

from gossipseg.core import events, messages
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.effects import StartTransfer
from gossipseg.core.gossip.exchange import describe
from gossipseg.core.gossip.open_swap import OpenSwap, Stage
from gossipseg.core.gossip.swap_decision import PROBE_SHARE, SwapDecision
from gossipseg.core.gossip.swap_turns import WINDOW_CLOSED
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.offences import is_offence, verdict_is_offence
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ModelRef, Site

TRIES = 5
"""Failed attempts to deliver a snapshot after which the swap is dropped; each pause is twice the last."""


class SwapTrade:
    """The files of a swap, in both directions."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        decision: SwapDecision,
        *,
        ledger: ManifestLedger,
        counts: Counter[tuple[str, Site]],
        max_model_bytes: int,
    ) -> None:
        self._ctx, self._params, self._decision = ctx, params, decision
        self._ledger, self._counts, self._max_model_bytes = ledger, counts, max_model_bytes
        self._transfers: dict[int, tuple[Site, ModelRef]] = {}

    def on_exported(self, event: events.SnapshotExported) -> bool:
        open = self._decision.current(event.swap, Stage.TRADING)
        if open is None or open.own is not None:
            return True
        if event.model is None:
            self._decision.drop(open, event.reason)
            return True
        open.own = self._ledger.sign(event.model)
        self._decision.advanced(open)
        self._ctx.persist()  # its number is never used again
        if open.gives:
            self.speak(open)
        self._decision.progress(open)
        return True

    def speak(self, open: OpenSwap) -> None:
        """Send the message that is next: the snapshot, "ready", or the question how the swap stands."""
        timeout_s = self._params.offer_timeout_s
        open.next_at = self._ctx.now + PROBE_SHARE * timeout_s
        if open.stage is Stage.DOUBT:
            body = messages.SwapReady(open.id)
            self._ctx.request(open.partner, body, timeout_s, self._decision.on_state, open.id)
        elif open.stage is Stage.TRADING:
            if open.gives and open.own is not None and not open.delivered:
                if open.transfer is None:
                    told = messages.SwapSnapshot(open.id, open.own)
                    self._ctx.request(open.partner, told, timeout_s, self._on_snapshot_reply, open.id)
            else:
                self._decision.tell(open.partner, open.id, "open", "")
        else:
            open.next_at = math.inf

    def _on_snapshot_reply(self, call: Call, outcome: CallOutcome) -> None:
        open = self._decision.mine(call)
        if open is None or open.stage is not Stage.TRADING or open.own is None:
            return
        if not isinstance(outcome, messages.SwapSnapshotReply):
            self._undelivered(open, getattr(outcome, "reason", "unreachable"))
        elif outcome.verdict == "accept":
            if open.transfer is None:
                open.transfer = self._ctx.next_id()
                self._transfers[open.transfer] = (open.partner, open.own)
                self._ctx.effects.append(StartTransfer(open.transfer, open.partner, open.own))
        elif outcome.verdict == "here":
            open.delivered = True
            self._decision.progress(open)
        elif outcome.verdict == "wait":
            open.next_at = self._ctx.now + self._params.offer_timeout_s
        else:
            self._decision.drop(open, outcome.reason, tell=outcome.reason != "no_such_swap")

    def on_transfer(self, event: events.TransferDone | events.TransferFailed) -> bool:
        """Handle the outcome of a transfer; False: no such transfer."""
        found = self._transfers.pop(event.id, None)
        if found is None:
            return False
        to, model = found
        open = (
            self._decision.open
            if self._decision.open is not None and self._decision.open.transfer == event.id
            else None
        )
        if isinstance(event, events.TransferDone):
            self._counts["sent", to] += 1
            self._ctx.note("transfer_done", to, **describe(model))
            if open is not None:
                open.transfer, open.delivered = None, True
                self._decision.advanced(open)
                self._decision.progress(open)
        else:
            self._ctx.note("transfer_failed", to, event.reason, detail=event.detail, **describe(model))
            if open is not None:
                open.transfer = None
                if open.stage is not Stage.TRADING:
                    pass  # the partner has it, or has done without it: its answer alone was lost
                elif event.reason == WINDOW_CLOSED:
                    self._decision.drop(open, WINDOW_CLOSED, ask=False)
                else:
                    self._undelivered(open, event.reason)
        return True

    def _undelivered(self, open: OpenSwap, reason: str) -> None:
        """Try again after a pause, or drop the swap."""
        open.tries += 1
        if open.tries >= TRIES:
            self._decision.drop(open, reason)
        else:
            open.next_at = self._ctx.now + self._params.offer_timeout_s * 2 ** (open.tries - 1)

    # -------------------------------------------------------------- what comes

    def on_snapshot(self, frm: Site, token: int, body: messages.SwapSnapshot) -> None:
        """Handle the partner's word of its snapshot; the stream follows if it is accepted."""
        open = self._decision.open
        if open is None or open.id != body.swap or open.partner != frm:
            self._ctx.respond(token, messages.SwapSnapshotReply("reject", "no_such_swap"))
        elif open.stage is Stage.ASKING:
            self._ctx.respond(token, messages.SwapSnapshotReply("wait", "not_opened"))
        elif open.theirs is not None and open.theirs.hash == body.model.hash:
            self._ctx.respond(token, messages.SwapSnapshotReply("here" if open.arrived else "accept"))
        elif reason := self._wrong(open, frm, body.model):
            self._ctx.respond(token, messages.SwapSnapshotReply("reject", reason))
            self._ctx.refused(frm, reason, body.model)
            if open.stage is Stage.TRADING:
                self._decision.drop(open, reason, tell=False)
        else:
            open.theirs = body.model
            self._ledger.accept(
                body.model
            )  # persisted with the next record: a crash before it drops the swap
            self._ctx.respond(token, messages.SwapSnapshotReply("accept"))

    def _wrong(self, open: OpenSwap, frm: Site, model: ModelRef) -> str:
        """Why a snapshot is not taken, or ""."""
        if open.stage is not Stage.TRADING or not open.takes or open.arrived:
            return "other_model"
        if fault := self._ledger.fault_of_model(frm, model):
            return fault
        return "too_large" if model.size_bytes > self._max_model_bytes else ""

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The partner's snapshot whose stream may come now; else None."""
        open = self._decision.open
        if open is None or open.stage is not Stage.TRADING or open.partner != frm or open.arrived:
            return None
        return open.theirs if open.theirs is not None and open.theirs.hash == hash else None

    def on_began(self, frm: Site, hash: str) -> bool:
        """Note that a stream has begun or continues; False: it is not expected."""
        if self.expects(frm, hash) is None or self._decision.open is None:
            return False
        self._decision.open.next_at = self._ctx.now + PROBE_SHARE * self._params.offer_timeout_s
        self._decision.advanced(self._decision.open)
        return True

    def on_arrived(self, event: events.ModelArrived) -> bool:
        """Note that the snapshot is in the store; False: it was not expected."""
        model, open = self.expects(event.frm, event.model.hash), self._decision.open
        if model is None or open is None:
            return False
        open.arrived = True
        self._decision.advanced(open)
        self._counts["received", event.frm] += 1
        self._ledger.arrived(model)
        self._ctx.note("model_arrived", event.frm, **describe(model))
        self._decision.order()
        return True

    def on_broken(self, event: events.ModelBroken) -> bool:
        """Handle a snapshot that failed its checks, or whose stream ended; False: it was not expected."""
        model, open = self.expects(event.frm, event.hash), self._decision.open
        if model is None or open is None:
            return False
        self._ctx.note("model_broken", event.frm, event.reason, hash=event.hash, detail=event.detail)
        if is_offence(event.reason, event.frm, model):
            self._counts["refused", event.frm] += 1
            self._ctx.offence(event.frm, event.reason)
            self._decision.drop(open, event.reason)
        return True  # else its sender tries again

    def on_admitted(self, event: events.SnapshotAdmitted) -> bool:
        open = self._decision.current(event.swap, Stage.TRADING)
        if open is None or not open.arrived:
            return True
        if event.reason:
            self._counts["refused", open.partner] += 1
            model = describe(open.theirs) if open.theirs is not None else {}
            self._ctx.note("visit_refused", open.partner, event.reason, detail=event.detail, **model)
            if verdict_is_offence(event.reason):
                self._ctx.offence(open.partner, event.reason)
            self._decision.drop(open, event.reason)
        else:
            open.admitted = True
            self._decision.advanced(open)
            self._decision.progress(open)
        return True

    # -------------------------------------------------------------- views

    def receiver(self, id: int) -> Site:
        """The site that a transfer goes to; "" where no transfer has this number."""
        found = self._transfers.get(id)
        return found[0] if found is not None else ""

    def sending(self) -> list[tuple[Site, ModelRef]]:
        """Snapshots that are being sent."""
        return list(self._transfers.values())

    def kept(self) -> list[ModelRef]:
        """Files that the store must keep."""
        open = self._decision.open
        files = [open.own, open.theirs] if open is not None else []
        return [m for m in (*files, *(m for _, m in self._transfers.values())) if m is not None]
