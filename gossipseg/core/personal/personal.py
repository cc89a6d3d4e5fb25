"""Both sides of personal models that travel: what is served, and what is fetched."""

from __future__ import annotations

from collections import Counter

from gossipseg.core import events
from gossipseg.core.budget import Budget
from gossipseg.core.context import Context
from gossipseg.core.effects import PersonalRecord
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.members import Membership
from gossipseg.core.params import GossipParams
from gossipseg.core.personal.fetching import PersonalFetching
from gossipseg.core.personal.serving import PersonalServing
from gossipseg.core.types import ModelRef, Site


class PersonalModels:
    """A site's part in them."""

    def __init__(
        self,
        ctx: Context,
        params: GossipParams,
        membership: Membership,
        *,
        budget: Budget,
        ledger: ManifestLedger,
        counts: Counter[tuple[str, Site]],
        max_model_bytes: int,
        active: bool,
        record: PersonalRecord,
    ) -> None:
        """`active`: whether this federation exchanges anything. `record`: of the last run."""
        self._ctx, self._params, self._budget = ctx, params, budget
        self._active = active and params.personal_fetches > 0
        self.serving = PersonalServing(ctx, params, membership, budget=budget, ledger=ledger, own=record.own)
        if not self._active:
            self.serving.refusal, self.serving.own = "exchanges_nothing", None
        self.fetching = PersonalFetching(
            ctx,
            params,
            membership,
            budget=budget,
            ledger=ledger,
            counts=counts,
            max_model_bytes=max_model_bytes,
            held=((s, m) for s, m in record.held if s in membership.members),
        )

    @property
    def _spent(self) -> bool:
        return self._ctx.info.round >= self._budget.last

    def worker_ready(self, event: events.WorkerReady) -> None:
        """The worker is up, and has said what it can do."""
        if self._active:
            self.serving.worker_ready(event.personal_refusal, spent=self._spent)
        # Told even where none is taken: its checkpoint may hold some from before the settings changed.
        self.fetching.worker_ready(takes=event.takes_personal and self._active, spent=self._spent)

    def worker_lost(self, *, final: bool, blamed: bool) -> None:
        """The worker died. `blamed`: a model that is held may be the cause."""
        self.serving.worker_lost()
        self.fetching.worker_lost(final=final, blamed=blamed)

    def round_over(self, round: int) -> None:
        """A round is done; a later effect of the step may start the next."""
        self.fetching.round_over()
        if self._active and (round % self._params.personal_every_rounds == 0 or self._spent):
            self.serving.export()
            self.fetching.refresh(ended=self._spent)

    def record(self) -> PersonalRecord:
        """What must survive a restart."""
        return PersonalRecord(self.serving.own, tuple(self.fetching.held.items()))

    def kept(self) -> list[ModelRef]:
        """Files that the store must keep."""
        wanted = [want.model for want in self.fetching.wants.values() if want.model is not None]
        return [*self.serving.kept(), *self.fetching.held.values(), *wanted]
