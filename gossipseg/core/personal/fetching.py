"""Peers' personal models at this site: from whom one is fetched, and when; which are held.

A refresh is due every `personal_every_rounds` and at the end of training, and asks `personal_fetches` sites:
first those of which none is held, then those whose model is the oldest. Who has none yet, is busy or cannot
be reached is asked again later, until the next refresh. After the end a site is asked once it has finished,
too: its model is final then; one that was away at the end is asked when it is back, where fewer were there.

Models with which the worker dies twice in a row are let go of, and their sites asked for none until the list
of sites is read anew: a model too large for this site must not end its training.

The transfer is a pull: a Fetch without a hash names the model, one with its hash has it streamed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gossipseg.core import events, messages
from gossipseg.core.budget import Budget
from gossipseg.core.context import Call, CallOutcome, Context
from gossipseg.core.effects import HoldPersonal
from gossipseg.core.manifests import ManifestLedger
from gossipseg.core.membership.member import Member
from gossipseg.core.membership.members import Membership
from gossipseg.core.offences import is_offence, verdict_is_offence
from gossipseg.core.params import GossipParams
from gossipseg.core.personal.serving import describe
from gossipseg.core.types import ModelRef, Phase, Site

MOST_HELD_SHARE = 2
"""Models held, as a multiple of those fetched at a refresh: each costs memory and time at a validation."""
SILENT_SHARE = 4.0
"""Request timeouts without data after which a stream is given up."""
LOOK_SHARE = 0.2
"""Request timeouts between two looks at whether a site has finished."""
LONGEST_PAUSE_S = 600.0
PAUSED_S = 600.0
"""Seconds after which a paused site gives its place to another, after the end."""
NEVER = frozenset(
    {"private", "private_part", "private_network", "partial_labels", "no_personal", "exchanges_nothing"}
)
"""Answers of a site that will not send any."""
NOT_FOR_US = frozenset({"bad_network", "network_too_large"})
"""Verdicts on a network that this site cannot build or does not bear: no offence, and not asked for again."""
UNLIKE = frozenset({"norm_exploded", "layer_changed_too_much"})
"""Verdicts on a model far from the shared one: the two were never mixed, and that is no offence."""
AT_WORK = frozenset({Phase.STARTING, Phase.TRAINING, Phase.ENDING, Phase.PAUSED})
"""Phases of a site whose personal model may still change."""


@dataclass(slots=True)
class Want:
    """A site whose personal model is to be fetched."""

    at: float
    """When to ask (again), or to give a stream up."""
    since: float = math.inf
    """Since when its site has been paused, as far as is seen here."""
    asking: bool = False
    """Whether a request is under way."""
    model: ModelRef | None = None
    """The named model whose stream may come."""
    streaming: bool = False
    tries: int = 0


class PersonalFetching:
    """`held`: those of the last run."""

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
        held: Iterable[tuple[Site, ModelRef]],
    ) -> None:
        self._ctx, self._params, self._membership, self._budget = ctx, params, membership, budget
        self._ledger, self._counts, self._max_model_bytes = ledger, counts, max_model_bytes
        self.held: dict[Site, ModelRef] = dict(held)
        """The oldest first."""
        self.wants: dict[Site, Want] = {}
        self.untold: set[Site] = set()
        """Sites whose model has come, and the worker has not answered yet."""
        self._takes = self._ended = self._worker_up = self._failed = False
        self._never: set[Site] = set()
        self._chosen: set[Site] = set()
        """Whom the last refresh chose."""
        self._dismissed: set[Site] = set()
        """Sites whose model was refused since the last refresh: each is asked again at the next one."""
        self._orders = 0
        """Orders to hold which the worker has not answered."""
        self._lost_with: frozenset[str] = frozenset()
        """Hashes of the models with which the worker last died."""

    # -------------------------------------------------------------- when

    def worker_ready(self, *, takes: bool, spent: bool) -> None:
        """The worker is up; it is told what is held. `takes`: whether a peer's model is of use here."""
        self._takes, self._worker_up, self._failed, self._orders = takes, True, False, 0
        run, held_some = self._ctx.info.contract, bool(self.held)
        if not takes:
            self.held, self.wants, self.untold = {}, {}, set()
        self.held = {
            site: m for site, m in self.held.items() if m.manifest is None or m.manifest.contract == run
        }
        if takes or held_some:
            self._tell()
        if takes and spent and not self._ended:
            self.refresh(ended=True)

    def worker_lost(self, *, final: bool, blamed: bool) -> None:
        """Let go of the models with which it has died twice in a row. `final`: it does not come again.

        Where it died over models that had just come, their sites are asked no more; otherwise all that are
        held go, and may come again.
        """
        self._orders, self._failed = 0, final
        if final:
            self.untold = set()
        if not (self._worker_up and blamed):
            self._worker_up = False
            return
        self._worker_up = False
        came = self.untold & self.held.keys()
        suspects = {site: self.held[site] for site in came or self.held}
        hashes = frozenset(model.hash for model in suspects.values())
        if hashes and hashes == self._lost_with:
            for site, model in suspects.items():
                del self.held[site]
                if came:
                    self._refuse(site)
                self._ctx.note("personal_refused", site, "worker_lost", **describe(model))
            self.untold -= suspects.keys()
            self._ctx.persist()
        self._lost_with = hashes

    def round_over(self) -> None:
        """The worker has completed a round with what is held."""
        self._lost_with = frozenset()

    def refresh(self, *, ended: bool) -> None:
        """Choose whom to ask now. `ended`: training is over."""
        if not self._takes:
            return
        self._ended = ended
        self.wants = {site: want for site, want in self.wants.items() if want.model is not None}
        self._chosen, self._dismissed = set(), set()
        self._choose()

    def _replace_the_gone(self) -> None:
        """Ask others in the place of sites that cannot be asked now, and whose model has not come."""
        members = self._membership.members
        for site in list(self._chosen & self.wants.keys()):
            member, want = members.get(site), self.wants[site]
            paused = member is not None and self._paused(member)
            want.since = min(want.since, self._ctx.now) if paused else math.inf
            gone = member is None or not self._open_to(member)
            if want.model is None and (gone or self._ctx.now - want.since >= PAUSED_S):
                del self.wants[site]
                self._chosen.discard(site)

    def _choose(self) -> None:
        """Choose sites as long as fewer are chosen than a refresh may ask."""
        free = self._params.personal_fetches - len(self._chosen)
        if free <= 0:
            return
        members, taken = self._membership.members.items(), self._chosen | self._dismissed
        eligible = [s for s, m in members if s not in taken and self._open_to(m)]
        self._ctx.rng.shuffle(eligible)
        oldest = {site: place for place, site in enumerate(self.held)}
        listed = self._membership.members
        eligible.sort(key=lambda site: (self._paused(listed[site]), oldest.get(site, -1)))
        for site in eligible[:free]:
            self._chosen.add(site)
            self.wants.setdefault(site, Want(self._ctx.now))

    def _open_to(self, member: Member) -> bool:
        """Whether a site may be asked, as far as is known."""
        if not member.live or member.refused or member.quarantined or member.site in self._never:
            return False
        contract = member.info.contract if member.info is not None else ""
        return contract == self._ctx.info.contract

    def _paused(self, member: Member) -> bool:
        """Whether a site's last model does not come for now."""
        return self._ended and member.info is not None and member.info.phase is Phase.PAUSED

    def settle(self) -> None:
        """Ask those who are due."""
        now = self._ctx.now
        if self._takes and self._ended:
            self._replace_the_gone()
            self._choose()
        for site, want in list(self.wants.items()):
            if want.asking or now < want.at:
                continue
            if want.model is not None:
                self._later(want)  # the stream has fallen silent
            elif self._at_work(site):
                want.at = now + LOOK_SHARE * self._params.offer_timeout_s
            elif self._busy() < self._params.max_parallel_transfers:
                self._ask(site, want, "")
            else:
                want.at = now + self._params.offer_timeout_s

    def _at_work(self, site: Site) -> bool:
        """Whether a site cannot be asked now, or is asked in vain: it trains on, and its last is wanted."""
        member = self._membership.members.get(site)
        if member is None or not self._open_to(member):
            return True
        ends = self._budget.federation is not None
        return self._ended and ends and member.info is not None and member.info.phase in AT_WORK

    def _busy(self) -> int:
        return sum(want.asking or want.model is not None for want in self.wants.values())

    def next_deadline(self) -> float:
        return min((want.at for want in self.wants.values() if not want.asking), default=math.inf)

    def _later(self, want: Want) -> None:
        """Ask again after a pause that doubles."""
        want.asking, want.model, want.streaming = False, None, False
        pause_s = self._params.offer_timeout_s * 2 ** min(16, want.tries)
        want.at = self._ctx.now + min(LONGEST_PAUSE_S, pause_s)
        want.tries += 1

    # -------------------------------------------------------------- asking

    def _ask(self, site: Site, want: Want, hash: str) -> None:
        run, timeout_s = self._ctx.info.contract, self._params.offer_timeout_s
        want.asking = True
        want.at = self._ctx.now + SILENT_SHARE * timeout_s
        body = messages.Fetch(run, run, "personal", 0, 0, hash)
        self._ctx.request(site, body, timeout_s, self._on_answer, hash)

    def _on_answer(self, call: Call, outcome: CallOutcome) -> None:
        want = self.wants.get(call.to)
        if want is None or not want.asking or (want.model.hash if want.model else "") != call.about:
            return
        want.asking = False
        if not isinstance(outcome, messages.FetchReply):
            if not want.streaming:  # else the answer alone was lost
                self._later(want)
        elif outcome.verdict == "reject" and outcome.reason in NEVER:
            del self.wants[call.to]
            self._refuse(call.to)
            self._ctx.note("personal_declined", call.to, outcome.reason)
        elif outcome.verdict != "accept":
            self._later(want)
        elif not call.about:
            self._named(call.to, want, outcome.model)

    def _named(self, site: Site, want: Want, model: ModelRef | None) -> None:
        """The site has said which model it serves."""
        if model is None:
            self._later(want)
        elif fault := self._fault(site, model):
            del self.wants[site]
            self._dismiss(site)
            self._ctx.note("personal_refused", site, fault, **describe(model))
            self._ctx.refused(site, fault, model)
        elif site in self.held and self.held[site].hash == model.hash:
            del self.wants[site]
        else:
            if self._ledger.accept(model):
                self._ctx.persist()
            want.model = model
            self._ask(site, want, model.hash)

    def _fault(self, site: Site, model: ModelRef) -> str:
        if fault := self._ledger.fault_of_personal(site, model):
            return fault
        return "too_large" if model.size_bytes > self._max_model_bytes else ""

    # -------------------------------------------------------------- what comes

    def expects(self, frm: Site, hash: str) -> ModelRef | None:
        """The model whose stream may come now; else None."""
        want = self.wants.get(frm)
        model = want.model if want is not None else None
        return model if model is not None and model.hash == hash else None

    def began(self, frm: Site, hash: str) -> bool:
        """Note that a stream has begun or continues; False: it is not expected."""
        if self.expects(frm, hash) is None:
            return False
        want = self.wants[frm]
        want.streaming, want.at = True, self._ctx.now + SILENT_SHARE * self._params.offer_timeout_s
        return True

    def arrived(self, event: events.ModelArrived) -> bool:
        """Hold a model that has come, in place of that site's earlier one; False: it was not expected."""
        model = self.expects(event.frm, event.model.hash)
        if model is None:
            return False
        del self.wants[event.frm]
        self._ledger.arrived(model)
        self.held.pop(event.frm, None)
        self.held[event.frm] = model
        while len(self.held) > MOST_HELD_SHARE * self._params.personal_fetches:
            del self.held[next(iter(self.held))]
        if not self._failed:
            self.untold.add(event.frm)
        self._ctx.note("personal_received", event.frm, **describe(model))
        self._ctx.persist()
        self._tell()
        return True

    def broken(self, event: events.ModelBroken) -> bool:
        """Handle a file that failed its checks, or whose stream ended for good; False: it was not
        expected."""
        model = self.expects(event.frm, event.hash)
        if model is None:
            return False
        self._ctx.note("model_broken", event.frm, event.reason, hash=event.hash, detail=event.detail)
        if is_offence(event.reason, event.frm, model):
            del self.wants[event.frm]
            self._dismiss(event.frm)
            self._ctx.offence(event.frm, event.reason)
        else:
            self._later(self.wants[event.frm])
        return True

    def on_held(self, event: events.PersonalHeld) -> bool:
        """Let go of what the worker refused."""
        self._orders = max(0, self._orders - 1)
        if not self._orders:  # else a newer order is still to be answered
            self.untold = set()
            if self._ended:
                self._lost_with = frozenset()
        for site, hash, reason, detail in event.refused:
            model = self.held.get(site)
            if model is None or model.hash != hash:
                continue
            del self.held[site]
            self._counts["refused", site] += 1
            self._ctx.note("personal_refused", site, reason, detail=detail, **describe(model))
            if reason in NOT_FOR_US:
                self._refuse(site)
            elif verdict_is_offence(reason) and reason not in UNLIKE:
                self._ctx.offence(site, reason)
            self._ctx.persist()
        return True

    # -------------------------------------------------------------- the list of sites

    def keep(self, listed: Iterable[Site]) -> None:
        """Only these sites are listed now: the models of others are let go of. (The caller persists.)"""
        sites = set(listed)
        self.wants = {site: want for site, want in self.wants.items() if site in sites}
        self.untold &= sites
        self._chosen &= sites
        self._never = set()
        if any(site not in sites for site in self.held):
            self.held = {site: model for site, model in self.held.items() if site in sites}
            self._tell()

    def leave(self) -> None:
        """Fetch no more."""
        self.wants = {}

    def _dismiss(self, site: Site) -> None:
        """Ask another in the place of a site whose model was refused."""
        self._chosen.discard(site)
        self._dismissed.add(site)

    def _refuse(self, site: Site) -> None:
        """Ask a site for none any more; another may be asked in its place."""
        self._never.add(site)
        self._chosen.discard(site)

    def _tell(self) -> None:
        self._orders += 1
        self._ctx.effects.append(HoldPersonal(tuple(self.held.items())))
