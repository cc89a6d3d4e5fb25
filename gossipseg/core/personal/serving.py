"""This site's own personal model, as it is served to peers that fetch it."""

from __future__ import annotations

import math
from typing import Any

from gossipseg.core import events, messages
from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.effects import ExportPersonal, StartTransfer
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ModelRef, Phase, Site

REPEAT_S = 600.0
"""Seconds before a last export that failed is repeated."""


class PersonalServing:
    """`own`: the newest export, from the last run where there is one."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        membership: Membership,
        *,
        budget: Budget,
        ledger: ManifestLedger,
        own: ModelRef | None,
    ) -> None:
        self._ctx, self._params, self._membership = ctx, params, membership
        self._budget, self._ledger = budget, ledger
        self.own = own
        self.refusal = "not_ready"
        """Why none is ever sent from here, as the worker says; "" where it may be."""
        self._exporting = self._worker_up = False
        self._again_at = -math.inf
        """When an export that failed may be repeated."""
        self.transfers: dict[int, tuple[Site, ModelRef]] = {}

    def worker_ready(self, refusal: str, *, spent: bool) -> None:
        """The worker is up. `spent`: no round is left to train, so that no other export will come."""
        self.refusal, self._exporting, self._worker_up = refusal, False, True
        if (refusal and refusal != "not_ready") or self._of_another_training():
            self.own = None
        if spent and self._stale:
            self.export()

    def _of_another_training(self) -> bool:
        """Whether the last run's model is of another contract, or of a checkpoint that is gone."""
        own, now = self.own, self._ctx.info
        if own is None:
            return False
        return own.round > now.round or (own.manifest is not None and own.manifest.contract != now.contract)

    @property
    def _stale(self) -> bool:
        return self.own is None or self.own.round != self._ctx.info.round

    def worker_lost(self) -> None:
        """An order to export died with the worker."""
        self._exporting = self._worker_up = False

    def export(self) -> None:
        """Have the worker write the personal model as it is now."""
        if not self.refusal and self._worker_up and self._ctx.info.round > 0:
            self._exporting = True
            self._ctx.effects.append(ExportPersonal())

    def on_exported(self, event: events.PersonalExported) -> bool:
        """Serve this one from now on."""
        self._exporting = False
        if event.model is None:
            self._again_at = self._ctx.now + REPEAT_S
            self._ctx.note("personal_not_exported", None, event.reason, at_round=event.round)
            return True
        self.own = self._ledger.sign(event.model)
        self._ctx.persist()  # its number is never used again
        return True

    def answer(self, frm: Site, token: int, body: messages.Fetch) -> None:
        """Handle a peer's request; with a hash the stream follows."""
        self._ctx.respond(token, self._reply(frm, body))

    def _reply(self, frm: Site, body: messages.Fetch) -> messages.FetchReply:
        own = self.own
        if self.refusal:
            return messages.FetchReply("reject", self.refusal)
        if reason := self._closed_to(frm, body):
            return messages.FetchReply("reject", reason)
        over = self._ctx.info.round >= self._budget.last
        if self._stale and over and not self._exporting and self._ctx.now >= self._again_at:
            self.export()  # the last export failed, for want of space perhaps: once more
        if self._exporting:
            return messages.FetchReply("busy", "busy")
        if own is None or (body.hash and body.hash != own.hash):
            return messages.FetchReply("reject", "not_here")
        if body.hash and not self._start(frm, own):
            return messages.FetchReply("busy", "busy")
        return messages.FetchReply("accept", "", own)

    def _closed_to(self, frm: Site, body: messages.Fetch) -> str:
        if self._ctx.info.phase is Phase.LEAVING:
            return "leaving"
        if self._membership.quarantined(frm):
            return "quarantined"
        return "" if body.run == self._ctx.info.contract else "contract_mismatch"

    def _start(self, to: Site, model: ModelRef) -> bool:
        """Stream it, unless it is being streamed there. False: too many are under way."""
        if (to, model) in self.transfers.values():
            return True
        if len(self.transfers) >= self._params.max_parallel_transfers:
            return False
        id = self._ctx.next_id()
        self.transfers[id] = (to, model)
        self._ctx.effects.append(StartTransfer(id, to, model))
        return True

    def on_transfer(self, event: events.TransferDone | events.TransferFailed) -> bool:
        """Handle the end of a stream; False: no such stream."""
        found = self.transfers.pop(event.id, None)
        if found is None:
            return False
        to, model = found
        if isinstance(event, events.TransferDone):
            self._ctx.note("personal_sent", to, **describe(model))
        else:
            detail = {"detail": event.detail, **describe(model)}
            self._ctx.note("personal_not_sent", to, event.reason, **detail)
        return True

    def rekeyed(self) -> None:
        """Sign with the present key what is served."""
        if self.own is not None:
            self.own = self._ledger.renew(self.own)

    def kept(self) -> list[ModelRef]:
        """Files that the store must keep."""
        own = [self.own] if self.own is not None else []
        return own + [model for _, model in self.transfers.values()]


def describe(model: ModelRef) -> dict[str, Any]:
    """The fields of a personal model for the event log."""
    return {"hash": model.hash, "bytes": model.size_bytes, "round": model.round}
