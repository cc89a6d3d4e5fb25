"""This site's own calls to its peers: requests and models are sent, outcomes return as events."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from gossipseg import config as configuration
from gossipseg.bridge.intake import Intake
from gossipseg.bridge.outcomes import why
from gossipseg.core import effects, events
from gossipseg.core.node import NodeState
from gossipseg.core.types import Site
from gossipseg.daemon.observe.exchange_table import ExchangeTable
from gossipseg.daemon.peers.transfer_windows import window_open
from gossipseg.errors import PeerUnreachable
from gossipseg.store import ModelStore
from gossipseg.wire.transport import Transport


class CallHost(Protocol):
    """The caller, as the runtime is; it learns the outcome of each call."""

    config: configuration.Config

    def inject(self, event: events.Event) -> None: ...

    def hear_peer(self, event: events.Event) -> None:
        """inject() for events that a peer has influenced."""
        ...


class PeerCalls:
    """Each call ends in exactly one event: Reply or RequestFailed, TransferDone or TransferFailed."""

    def __init__(
        self,
        owner: CallHost,
        node: NodeState,
        transport: Transport,
        store: ModelStore,
        intake: Intake,
        ledger: ExchangeTable,
    ) -> None:
        self._owner, self._node, self._transport, self._store = owner, node, transport, store
        self._intake, self._ledger = intake, ledger
        self._outgoing: dict[int, str] = {}

    @property
    def outgoing_models(self) -> set[str]:
        """Hashes of the models being sent now."""
        return set(self._outgoing.values())

    def hint(self, site: Site) -> None:
        """Try the address that a site announces, beside the listed one."""
        member = self._node.members.get(site)
        listed = {s.name: s.address for s in self._owner.config.others}
        if member is not None and member.address and member.address != listed.get(site):
            self._transport.hint_address(site, member.address)

    async def request(self, effect: effects.Request) -> None:
        begin = time.monotonic()
        try:
            body = await self._transport.request(effect.to, effect.body, effect.timeout_s)
            body = self._intake.verified(effect.to, body)
        except (Exception, asyncio.CancelledError) as e:
            self._owner.hear_peer(events.RequestFailed(effect.id, *why(e, in_core_words=True)))
        else:
            self._owner.hear_peer(events.Reply(effect.id, body, time.monotonic() - begin))

    def _outdated(self, effect: effects.StartTransfer) -> bool:
        """Whether a snapshot's swap is over: it may have waited long for its window."""
        if effect.model.kind != "model" or not configuration.swaps(self._owner.config.federation):
            return False
        own = self._node.swap.own if self._node.swap is not None else None
        return own is None or own.hash != effect.model.hash

    async def transfer(self, effect: effects.StartTransfer) -> None:
        self._outgoing[effect.id] = effect.model.hash
        swaps = configuration.swaps(self._owner.config.federation)
        path, size = self._store.path(effect.model.hash), max(1, effect.model.size_bytes)

        def moved(handed_over_bytes: int) -> None:
            self._ledger.moved("out", effect.to, effect.model.hash, handed_over_bytes / size)

        try:
            config = self._owner.config
            of_rounds = effect.model.kind in ("update", "global")
            section = config.federation.rounds if of_rounds else config.federation.gossip
            timeout_s = section.transfer_timeout_s
            await window_open(
                config.site.transfers.windows,
                0.0 if swaps else timeout_s,  # a swap is dropped: its snapshot would be old by then
                effect.to,
                lambda reason: self._ledger.waits(effect.to, effect.model.hash, reason),
            )
            if self._outdated(effect):
                raise PeerUnreachable(effect.to, "cancelled", "the swap is over")
            await self._transport.push(effect.to, effect.model, path, timeout_s, moved)
        except (Exception, asyncio.CancelledError) as e:
            self._owner.hear_peer(events.TransferFailed(effect.id, *why(e)))
        else:
            self._owner.hear_peer(events.TransferDone(effect.id))
        finally:
            self._outgoing.pop(effect.id, None)
