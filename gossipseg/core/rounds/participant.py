"""How a site answers the coordinators of rounds, and sites that fetch files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gossipseg.core import messages
from gossipseg.core.context import Context
from gossipseg.core.rounds.acceptor import Acceptor
from gossipseg.core.rounds.catch_up import CatchUp
from gossipseg.core.rounds.progress_report import told_by
from gossipseg.core.rounds.round_schedule import RoundSchedule
from gossipseg.core.rounds.transfers import Uploads
from gossipseg.core.types import ModelRef, Phase, Site, UpdateTally


class Participant:
    """Answers Prepare, Fetch, Accept and Commit. `heard_of(attempt, tally)` is called when an attempt was
    accepted."""

    def __init__(
        self,
        ctx: Context,
        acceptor: Acceptor,
        schedule: RoundSchedule,
        catch_up: CatchUp,
        uploads: Uploads,
        heard_of: Callable[[int, UpdateTally | None], None],
        quarantined: Callable[[Site], bool],
    ) -> None:
        self._ctx, self._acceptor, self._schedule = ctx, acceptor, schedule
        self._catch_up, self._uploads, self._heard_of = catch_up, uploads, heard_of
        self._quarantined = quarantined
        self._told: set[tuple[Site, str]] = set()

    def to(self, frm: Site, body: messages.Request) -> messages.Reply:
        """Build the reply; its statements are persisted before it is sent."""
        reason = self._foreign_run(frm, body)
        return refusal(body, reason) if reason else ANSWERS[type(body)](self, frm, body)

    def _foreign_run(self, frm: Site, body: Any) -> str:
        reason = self._acceptor.foreign_run(frm, body.run, body.sites)
        if reason in ("other_run", "other_sites") and (frm, reason) not in self._told:
            self._told.add((frm, reason))
            self._ctx.note("round_refused", frm, reason)
        if not reason and self._ctx.info.phase is Phase.LEAVING:
            return "leaving"
        common = isinstance(body, messages.Fetch) and body.kind == "global"  # what is here harms no site
        return "quarantined" if not reason and not common and self._quarantined(frm) else reason

    def _on_prepare(self, frm: Site, body: messages.Prepare) -> messages.PrepareReply:
        acceptor = self._acceptor
        reason = acceptor.prepare(frm, body)
        if reason == "behind":
            self._catch_up.hint(frm, body.round - 1)
        if reason:
            self._ctx.refused(frm, reason, None)
            committed = acceptor.record.committed if reason == "already_committed" else None
            return messages.PrepareReply(False, acceptor.promised, reason, committed=committed)
        self._heard_of(body.attempt, body.tally)
        phase = self._ctx.info.phase
        update = self._schedule.update if phase is not Phase.FINISHED else None
        waiting_for = "" if update is not None else ("not_ready" if phase is Phase.STARTING else phase.value)
        return messages.PrepareReply(
            True, acceptor.promised, "", acceptor.accepted, None, update, waiting_for
        )

    def _on_fetch(self, frm: Site, body: messages.Fetch) -> messages.FetchReply:
        acceptor = self._acceptor
        committed = acceptor.record.committed
        if body.kind == "global" and not body.hash:
            if committed is None:
                return messages.FetchReply("reject", "not_here")
            return messages.FetchReply("accept", "", committed.model, committed)
        model, reason = self._update_for(frm, body) if body.kind == "update" else self._common(body)
        if model is None:
            return messages.FetchReply("reject", reason, None, committed)
        if not self._uploads.start(frm, model):
            return messages.FetchReply("busy", "busy")
        return messages.FetchReply("accept", "", model)

    def _update_for(self, frm: Site, body: messages.Fetch) -> tuple[ModelRef | None, str]:
        """This site's own update, only for the coordinator of the attempt promised last."""
        acceptor, update = self._acceptor, self._schedule.update
        if acceptor.quorum.coordinator(body.round, body.attempt) != frm:
            return None, "not_coordinator"
        if body.round != acceptor.round or update is None or update.hash != body.hash:
            return None, "not_here"
        return (update, "") if body.attempt >= acceptor.promised else (None, "later_attempt")

    def _common(self, body: messages.Fetch) -> tuple[ModelRef | None, str]:
        """A global model that is stored here, for any listed site."""
        proposal = self._acceptor.holds(body.hash) if body.kind == "global" else None
        return (proposal.model, "") if proposal is not None else (None, "not_here")

    def _on_accept(self, frm: Site, body: messages.Accept) -> messages.AcceptReply:
        acceptor, proposal = self._acceptor, body.proposal
        reason = acceptor.objection(frm, proposal)
        if reason == "behind":
            self._catch_up.hint(frm, proposal.round - 1)
        if reason:
            self._ctx.refused(frm, reason, proposal.model)
            committed = acceptor.record.committed if reason == "already_committed" else None
            return messages.AcceptReply("reject", reason, acceptor.promised, committed)
        if acceptor.holds(proposal.model.hash):
            acceptor.store(proposal)
            self._heard_of(proposal.attempt, told_by(proposal))
            return messages.AcceptReply("stored", "", acceptor.promised)
        self._heard_of(proposal.attempt, told_by(proposal))
        self._catch_up.offer(proposal, frm)
        return messages.AcceptReply("missing", "", acceptor.promised)

    def _on_commit(self, frm: Site, body: messages.Commit) -> messages.CommitReply:
        reason = self._acceptor.fault(body.proposal)
        if reason:
            self._ctx.refused(frm, reason, body.proposal.model)
            return messages.CommitReply("reject", reason)
        self._catch_up.learn(body.proposal, frm)
        return messages.CommitReply("known")


_Answer = Callable[[Participant, Site, Any], messages.Reply]
ANSWERS: Mapping[type, _Answer] = {
    messages.Prepare: Participant._on_prepare,
    messages.Fetch: Participant._on_fetch,
    messages.Accept: Participant._on_accept,
    messages.Commit: Participant._on_commit,
}
"""The handler of each request."""


def refusal(body: messages.Request, reason: str) -> messages.Reply:
    """The refusal of a request of any kind."""
    match body:
        case messages.Prepare():
            return messages.PrepareReply(False, -1, reason)
        case messages.Fetch():
            return messages.FetchReply("reject", reason)
        case messages.Accept():
            return messages.AcceptReply("reject", reason)
    return messages.CommitReply("reject", reason)
