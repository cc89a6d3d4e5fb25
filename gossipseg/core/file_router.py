"""Model files in transfer: which of the exchanges a file is for, and which files the store must keep."""

from __future__ import annotations

from dataclasses import dataclass

from gossipseg.core import events
from gossipseg.core.context import Context
from gossipseg.core.gossip.exchange import GossipExchange
from gossipseg.core.gossip.swap import SwapExchange
from gossipseg.core.membership.members import Membership
from gossipseg.core.personal.personal import PersonalModels
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.types import ModelRef, Site
from gossipseg.core.wellness import Wellness


@dataclass(frozen=True, slots=True)
class Sending:
    """A model on its way out: looking for a receiver, offered, or being transferred."""

    to: Site
    model: ModelRef
    transferring: bool


@dataclass(slots=True)
class FileRouter:
    """All incoming and outgoing files. `rounds`: None without a coordinator. `swaps`: None without swaps."""

    ctx: Context
    membership: Membership
    gossip: GossipExchange
    rounds: Rounds | None
    wellness: Wellness
    swaps: SwapExchange | None = None
    personal: PersonalModels | None = None

    # -------------------------------------------------------------- what happens

    def ended(self, event: events.TransferDone | events.TransferFailed) -> bool:
        """Handle the end of a transfer to another site; False: no such transfer."""
        personal = self.personal is not None and event.id in self.personal.serving.transfers
        self.wellness.sent(self._receiver(event.id), event, personal=personal)
        if self.rounds is not None and self.rounds.on_transfer(event):
            return True
        if self.swaps is not None and self.swaps.trade.on_transfer(event):
            return True
        if self.personal is not None and self.personal.serving.on_transfer(event):
            return True
        return self.gossip.on_transfer(event)

    def began(self, event: events.TransferBegan) -> None:
        if self.swaps is not None and self.swaps.trade.on_began(event.frm, event.hash):
            return
        if self.personal is not None and self.personal.fetching.began(event.frm, event.hash):
            return
        if self.rounds is None or not self.rounds.downloads.began(event.frm, event.hash):
            self.gossip.inbox.began(event.frm, event.hash, self.ctx.now)

    def arrived(self, event: events.ModelArrived) -> None:
        self.wellness.took(event.frm, personal=self._is_personal(event.frm, event.model.hash))
        if self.swaps is not None and self.swaps.trade.on_arrived(event):
            return
        if self.personal is not None and self.personal.fetching.arrived(event):
            return
        if self.rounds is None or not self.rounds.downloads.arrived(event.frm, event.model):
            self.gossip.on_arrived(event)

    def broken(self, event: events.ModelBroken) -> None:
        if self.expects(event.frm, event.hash) is not None:
            self.wellness.not_taken(event.frm, event.reason)
        if self.swaps is not None and self.swaps.trade.on_broken(event):
            return
        if self.personal is not None and self.personal.fetching.broken(event):
            return
        if self.rounds is None or not self.rounds.downloads.broken(event):
            self.gossip.on_broken(event)

    def _is_personal(self, frm: Site, hash: str) -> bool:
        """Whether a file is a personal model that this site asked for."""
        if self.swaps is not None and self.swaps.trade.expects(frm, hash) is not None:
            return False
        return self.personal is not None and self.personal.fetching.expects(frm, hash) is not None

    def _receiver(self, id: int) -> Site:
        """The site that a transfer goes to; "" where no transfer has this number."""
        if self.rounds is not None and (transfer := self.rounds.uploads.transfers.get(id)) is not None:
            return transfer.to
        if self.swaps is not None and (to := self.swaps.trade.receiver(id)):
            return to
        if self.personal is not None and id in self.personal.serving.transfers:
            return self.personal.serving.transfers[id][0]
        return self.gossip.receiver(id)

    # -------------------------------------------------------------- what is known

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The accepted offer, or the requested file, whose stream may come now; else None."""
        if self.membership.quarantined(frm):
            return None
        if self.rounds is not None and (model := self.rounds.expects(frm, hash)) is not None:
            return model
        if self.swaps is not None and (model := self.swaps.trade.expects(frm, hash)) is not None:
            return model
        if self.personal is not None and (model := self.personal.fetching.expects(frm, hash)) is not None:
            return model
        return self.gossip.inbox.expected(frm, hash)

    def sending(self) -> tuple[Sending, ...]:
        """Models offered or being transferred now."""
        sending = [Sending(o.to, o.model, o.transferring) for o in self.gossip.outgoing]
        if self.rounds is not None:
            sending += [Sending(t.to, t.model, True) for t in self.rounds.uploads.transfers.values()]
        if self.swaps is not None:
            sending += [Sending(to, model, True) for to, model in self.swaps.trade.sending()]
        if self.personal is not None:
            sending += [Sending(to, model, True) for to, model in self.personal.serving.transfers.values()]
        return tuple(sending)

    def of_rounds(self) -> tuple[ModelRef, ...]:
        """Updates and global models that the rounds need."""
        return tuple(self.rounds.kept_models()) if self.rounds is not None else ()

    def kept(self) -> frozenset[str]:
        """Hashes the store must not collect: waiting, visiting, promised or outgoing models, those of rounds,
        and personal ones."""
        inbox = self.gossip.inbox
        models = [e.model for e in inbox.entries] + [o.model for o in self.gossip.outgoing]
        if inbox.reserved is not None:
            models.append(inbox.reserved.model)
        if self.swaps is not None:
            models += self.swaps.trade.kept()
        if self.personal is not None:
            models += self.personal.kept()
        return frozenset(m.hash for m in (*models, *self.of_rounds()))
