"""What a site has promised, stored and knows to be committed: the acceptor of one Paxos decision per round.

"Paxos Made Simple" (Lamport 2001). The attempt is the proposal's number; the global model is its value.

Every method that changes the record persists it before it returns. Only then may the answer be given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from gossipseg.core import messages
from gossipseg.core.context import Context
from gossipseg.core.effects import RoundsRecord
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.rounds.quorum import QuorumConfig
from gossipseg.core.types import ModelRef, Proposal, Site

FREE_LAPS = 4
"""Laps of the site list that are always allowed. Otherwise one far step would shut out all later attempts."""
RATE_MARGIN = 2.0
"""Allowed attempts, relative to the expected ones. Each site begins one attempt within its patience and
passes over the others at most; the factor allows for restarts."""
REMEMBERED_S = 30 * 86400.0
"""Seconds of attempts that a site may have missed while it was down or partitioned."""
ABSURD = 16.0
"""Multiple of that allowance which no honest site ever reaches."""
FARTHEST = 1 << 30


@dataclass(slots=True)
class BallotLimit:
    """The remaining allowance of attempt numbers. It grows with time; far steps use it up."""

    patience_s: float
    _left: float = float("inf")
    _at: float = 0.0

    def objection(self, step: int, sites: int, now: float) -> str:
        """Why an attempt this far above the promised one is not accepted; "" if it is."""
        self._grow(sites, now)
        if step <= max(FREE_LAPS * sites, self._left):
            return ""
        absurd = step > min(ABSURD * self._rate(sites) * REMEMBERED_S, FARTHEST)
        return "absurd_attempt" if absurd else "attempt_too_far"

    def take(self, step: int, sites: int, now: float) -> None:
        """Use up the allowance of a promised step."""
        self._grow(sites, now)
        if step > FREE_LAPS * sites:
            self._left -= min(step, self._left)

    def _grow(self, sites: int, now: float) -> None:
        rate = self._rate(sites)
        self._left = min(rate * REMEMBERED_S, self._left + rate * max(0.0, now - self._at))
        self._at = now

    def _rate(self, sites: int) -> float:
        return RATE_MARGIN * (sites + 1) ** 2 / self.patience_s


class Acceptor:
    """The durable side of the rounds. `quorum` is replaced when the list of sites changes."""

    def __init__(
        self,
        ctx: Context,
        quorum: QuorumConfig,
        record: RoundsRecord,
        ledger: ManifestLedger,
        *,
        max_model_bytes: int,
        patience_s: float,
        last_round: float = math.inf,
    ) -> None:
        """`last_round`: the round of the last global model."""
        self._reach = BallotLimit(patience_s)
        self._ctx, self.ledger, self._max_model_bytes = ctx, ledger, max_model_bytes
        self._last_round = last_round
        self.quorum, self.record = quorum, record
        self.run = ""
        """"" until the worker has reported the network signature since the daemon started."""

    # -------------------------------------------------------------- what is known

    @property
    def committed(self) -> int:
        """The newest round whose global model is committed and here; 0: only W_0."""
        return self.record.committed.round if self.record.committed else 0

    @property
    def round(self) -> int:
        """The round this site works towards."""
        return self.committed + 1

    @property
    def promised(self) -> int:
        """The lowest attempt of that round that is still accepted; -1: none was promised."""
        return self.record.promised_attempt if self.record.promised_round == self.round else -1

    @property
    def accepted(self) -> Proposal | None:
        """The model stored for that round."""
        accepted = self.record.accepted
        return accepted if accepted is not None and accepted.round == self.round else None

    def holds(self, hash: str) -> Proposal | None:
        """The global model with this hash, if its file is kept here."""
        for proposal in (self.record.committed, self.accepted):
            if proposal is not None and proposal.model.hash == hash:
                return proposal
        return None

    # -------------------------------------------------------------- the rules

    def foreign_run(self, frm: Site, run: str, sites: str) -> str:
        """Why a message does not belong to this run; "" if it does."""
        if not self.run:
            return "not_ready"
        if run != self.run:
            return "other_run"
        if sites != self.quorum.key or frm not in self.quorum.sites:
            return "other_sites"
        return ""

    def prepare(self, frm: Site, body: messages.Prepare) -> str:
        """Promise the attempt, or say why not. Phase 1b: no attempt below the promised one is accepted."""
        reason = self._out_of_turn(frm, body.round, body.attempt)
        if not reason and body.attempt > self.promised:
            self.promise(body.attempt)
        return reason

    def promise(self, attempt: int, **changes: Any) -> None:
        """Promise to accept no lower attempt, nor the same number under another list, from now on."""
        self._reach.take(attempt - self.promised, len(self.quorum.sites), self._ctx.now)
        self.change(
            promised_round=self.round, promised_attempt=attempt, promised_sites=self.quorum.key, **changes
        )

    def objection(self, frm: Site, proposal: Proposal) -> str:
        """Why this site does not store the model now; "" if it does, once the file is here."""
        return self._out_of_turn(frm, proposal.round, proposal.attempt) or self.fault(proposal, frm)

    def store(self, proposal: Proposal) -> bool:
        """Store a model whose file is here. Phase 2b: stored unless a later attempt was promised
        meanwhile."""
        if proposal.round != self.round or self._superseded(proposal.attempt):
            return False
        if proposal != self.accepted:
            self.promise(proposal.attempt, accepted=proposal)
        return True

    def commit(self, proposal: Proposal) -> bool:
        """Commit a model that a quorum has stored and whose file is here; False: one as new is committed
        already."""
        if proposal.round <= self.committed:
            return False
        self.record = replace(
            self.record,
            committed=proposal,
            promised_round=proposal.round + 1,
            promised_attempt=-1,
            promised_sites="",
            accepted=None,
            update_round=0,
            update=None,
        )
        self.ledger.accept(proposal.model)
        self._ctx.say(committed=proposal.round)
        self._ctx.persist()
        return True

    def fault(self, proposal: Proposal, frm: Site | None = None) -> str:
        """Why no site should store the model, whoever proposes it; `frm`: the coordinator of its attempt.

        The contributors are its maker's to check: the maker may have used an earlier list with other sites
        and quorums.
        """
        if proposal.model.kind != "global":
            return "other_model"
        if proposal.round > self._last_round:
            return "beyond_budget"
        if len(set(proposal.contributors)) != len(proposal.contributors):
            return "too_few_contributors"
        if reason := self.ledger.fault_of_common(proposal, self.run, frm):
            return reason
        return "too_large" if self.too_large(proposal.model) else ""

    def too_large(self, model: ModelRef) -> bool:
        """Whether the model declares more bytes than this site accepts."""
        return model.size_bytes > self._max_model_bytes

    def _out_of_turn(self, frm: Site, round: int, attempt: int) -> str:
        if self.quorum.coordinator(round, attempt) != frm:
            return "not_coordinator"
        if round < self.round:
            return "already_committed"
        if round > self.round:
            return "behind"
        if self._superseded(attempt):
            return "later_attempt"
        step = attempt - self.promised
        return self._reach.objection(step, len(self.quorum.sites), self._ctx.now)

    @property
    def barred(self) -> int:
        """The highest attempt of this round that no other site can lead here any more; below 0: none."""
        return self.promised if self._under_other_list else self.promised - 1

    def _superseded(self, attempt: int) -> bool:
        return attempt <= self.barred

    @property
    def _under_other_list(self) -> bool:
        """Whether the last promise was made to another coordinator than today's list names: one number, two
        proposals."""
        return self.promised >= 0 and self.record.promised_sites not in ("", self.quorum.key)

    # -------------------------------------------------------------- the record

    def change(self, **changes: Any) -> None:
        """Change the record and write it to disk before any later effect of this step."""
        self.record = replace(self.record, **changes)
        self._ctx.persist()

    def begin(self, run: str) -> None:
        """Begin a run, now that the contract is known. The record of another run does not count in this
        one."""
        self.run = run
        if self.record.run not in ("", run):
            forgotten = self.record.committed.round if self.record.committed else 0
            self._ctx.note("rounds_forgotten", None, "other_run", committed=forgotten)
            self.record = RoundsRecord()
            self._ctx.say(committed=0)
        self.record = replace(self.record, run=run)

    def rekeyed(self) -> None:
        """Sign this site's update anew with its new key: peers will soon reject the old key. (The caller
        persists.)"""
        record, renew = self.record, self.ledger.renew
        committed, accepted, update = record.committed, record.accepted, record.update
        self.record = replace(
            record,
            committed=replace(committed, model=renew(committed.model)) if committed else None,
            accepted=replace(accepted, model=renew(accepted.model)) if accepted else None,
            update=renew(update) if update else None,
        )

    def relist(self, quorum: QuorumConfig) -> None:
        """Apply a changed list of sites.

        What is stored stays, because it may be committed. (Quorums of lists that differ by one site at a time
        have a site in common; larger changes need a quiet moment.) A promise holds for the list it was made
        under. Under another list the same number belongs to another coordinator, and the number alone could
        not tell the two proposals apart.
        """
        self.quorum = quorum
