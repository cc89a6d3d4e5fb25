"""What a node must remember across a crash, gathered from its parts into one snapshot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gossipseg.core.context import Context
from gossipseg.core.effects import Persist, Snapshot
from gossipseg.core.enforcement import Warden
from gossipseg.core.gossip.exchange import Gossip
from gossipseg.core.manifests import Notary
from gossipseg.core.membership.members import Membership
from gossipseg.core.rounds.rounds import Rounds
from gossipseg.core.types import Site
from gossipseg.core.worker_state import Training


@dataclass(slots=True)
class Memory:
    """`persist` is what Context.persist does."""

    ctx: Context
    membership: Membership
    gossip: Gossip
    rounds: Rounds | None
    training: Training
    notary: Notary
    warden: Warden
    counts: Counter[tuple[str, Site]]

    def persist(self) -> None:
        """Have the present state put on disk before any later effect of this step."""
        self.ctx.effects.append(Persist(self.snapshot()))

    def snapshot(self) -> Snapshot:
        info = self.ctx.info
        return Snapshot(
            incarnation=self.membership.own_word.incarnation,
            round=info.round,
            steps=info.steps,
            inbox=self.gossip.inbox.entries,
            paused=self.training.paused,
            counters=tuple((what, site, n) for (what, site), n in sorted(self.counts.items())),
            rounds=self.rounds.acceptor.record if self.rounds is not None else None,
            sequence=self.notary.sequence,
            seen=tuple(self.notary.seen[key] for key in sorted(self.notary.seen)),
            conduct=self.warden.records(),
        )
