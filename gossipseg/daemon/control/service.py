"""The control service's answers to gossipctl, made from the runtime's present state."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from gossipseg import __version__, trust
from gossipseg.core.membership.member import Member
from gossipseg.core.types import MemberState, Phase, Site, fingerprint
from gossipseg.daemon.control.round_documents import rounds_doc, under_way
from gossipseg.daemon.control.swap_documents import open_swap, swap_counts, swaps_wait
from gossipseg.daemon.health.concerns import current_concerns, reach_rows, sentence
from gossipseg.daemon.observe import certificate_expiry
from gossipseg.daemon.runtime import Runtime
from gossipseg.daemon.worker.process import UNWELL
from gossipseg.errors import GossipsegError
from gossipseg.nets.params import NetworkParams
from gossipseg.wire import documents as doc
from gossipseg.wire.clocks import CLOCK_TOLERANCE_S, clock_text

WATCH_INTERVAL_S = 0.5


class Service:
    """The ControlHandler of one daemon.

    `identity` is the one in use now; `stop` ends the daemon; `reload` rereads the list and reports the
    changes.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        identity: Callable[[], trust.Identity | None],
        stop: Callable[[str], None],
        reload: Callable[[], Awaitable[Sequence[str]]],
        discovery: Callable[[], doc.DiscoveryStatus],
    ) -> None:
        self._runtime, self._identity = runtime, identity
        self._stop, self._reload, self._discovery = stop, reload, discovery
        self._known_ids = (runtime.config, site_ids(runtime))

    async def status(self) -> doc.StatusDoc:
        r, view, node = self._runtime, self._runtime.training, self._runtime.node
        found = current_concerns(r, time.monotonic())
        reasons, view_of_rounds = self.reasons(found), node.rounds_view
        traffic = [r.transport.traffic(s.name) for s in r.config.others]
        return doc.StatusDoc(
            site=r.config.site.site,
            id=identity.site_id if (identity := self._identity()) else "",
            federation=r.config.federation.federation,
            version=__version__,
            state="failed" if r.node.phase is Phase.FAILED else "degraded" if reasons else "ok",
            reasons=reasons,
            phase=r.node.phase.value,
            activity=view.activity if r.node.phase is not Phase.PAUSED else "paused",
            fraction=view.fraction,
            round=r.node.round,
            rounds=r.node.last_round,
            step=view.step,
            steps_per_round=view.steps_per_round,
            loss=view.loss,
            dice_val=view.dice_val,
            dice_test_start=view.dice_test_start,
            dice_test=view.dice_test,
            cases=view.cases,
            splits=doc.SplitCounts(**view.splits),
            splits_from=view.splits_from,
            algorithm=r.config.federation.algorithm.name,
            exchange=r.config.federation.algorithm.exchange,
            committed=view_of_rounds.committed if view_of_rounds else None,
            coordinator=view_of_rounds.coordinator or "" if view_of_rounds else "",
            under_way=under_way(view_of_rounds),
            device=view.device,
            members=self._member_counts(),
            sent=node.count("sent"),
            received=node.count("received"),
            accepted=sum(node.count(what) for what in ("merged", "mixed", "copied")),
            refused=node.count("refused"),
            bytes_out=sum(t.bytes_out for t in traffic),
            bytes_in=sum(t.bytes_in for t in traffic),
            inbox=len(r.node.inbox),
            uptime_s=time.monotonic() - r.started_at,
            self_health=r.node.self_health,
            contract=fingerprint(r.worker.contract),
            control=str(r.config.control_socket),
            listen=r.transport.address,
            worker=self._worker(),
            disk_free_bytes=_disk_free_bytes(r.config.site.state_dir),
            certificate_days_left=self._days_left(),
            discovery=self._discovery(),
            epsilon=view.spent.epsilon if view.spent else None,
            delta=view.spent.delta if view.spent else None,
            max_epsilon=view.spent.max_epsilon if view.spent else None,
            deployed=view.deployed,
            deployed_reason=view.deployed_reason,
            personal_network=own_network(r.config.site.personal_network),
            concerns=found,
            swap=open_swap(r),
            swaps=swap_counts(node),
            swaps_wait=swaps_wait(r),
            set_aside=tuple(sorted(node.set_aside)),
            personal_held=tuple(node.held_personal),
            personal_wanted=tuple(sorted(node.wants_personal)),
        )

    async def peers(self, limit: int) -> doc.PeersDoc:
        rows = [self._peer(site.name, site.address) for site in self._runtime.config.others]
        return doc.PeersDoc(peers=tuple(rows[: limit or None]))

    async def exchanges(self, limit: int) -> doc.ExchangesDoc:
        r = self._runtime
        return doc.ExchangesDoc(tuple(r.ledger.recent(limit)), tuple(r.swaps.recent(limit)))

    async def models(self) -> doc.ModelsDoc:
        r = self._runtime
        stored = await asyncio.to_thread(r.store.list)
        known: dict[str, tuple[str, str, int | None]] = {}
        for model in r.node.round_models:
            maker = model.manifest.maker if model.manifest is not None else ""
            known[model.hash] = ("common" if model.kind == "global" else model.kind, maker, model.round)
        if (own := r.node.own_personal) is not None:
            known[own.hash] = ("personal", r.config.site.site, own.round)
        known |= {m.hash: ("personal", frm, m.round) for frm, m in r.node.held_personal.items()}
        known |= {s.model.hash: ("outgoing", r.config.site.site, s.model.round) for s in r.node.sending}
        if (swap := r.node.swap) is not None:
            if swap.own is not None:
                known[swap.own.hash] = ("outgoing", r.config.site.site, swap.own.round)
            if swap.theirs is not None:
                known[swap.theirs.hash] = ("inbox", swap.partner, swap.theirs.round)
        known |= {e.model.hash: ("inbox", e.frm, e.model.round) for e in r.node.inbox}
        if (visit := r.node.visiting) is not None:
            known[visit.model.hash] = ("visiting", visit.frm, visit.model.round)
        rows = []
        for file in stored:
            kind, frm, round_ = known.get(file.hash, ("other", "", None))
            age_s = max(0.0, time.time() - file.mtime)
            rows.append(doc.ModelRow(file.hash, file.size_bytes, kind, frm, round_, age_s))
        return doc.ModelsDoc(models=tuple(rows))

    async def rounds(self) -> doc.RoundsDoc:
        r = self._runtime
        exchange = r.config.federation.algorithm.exchange
        return rounds_doc(exchange, r.node.rounds_view, r.training.similarity)

    async def quarantine(self) -> doc.QuarantineDoc:
        node, now = self._runtime.node, time.monotonic()
        params = node.quarantine_params
        rows = [
            doc.QuarantineRow(
                site,
                conduct.standing.value,
                conduct.reason,
                max(0.0, conduct.until - now) if node.quarantined(site) else None,
                len(conduct.offences),
                node.count("offences", site),
                node.next_quarantine_s(site),
            )
            for site, conduct in sorted(node.quarantine.items())
        ]
        return doc.QuarantineDoc(limit=params.offences, window_s=params.window_s, sites=tuple(rows))

    async def lift_quarantine(self, site: str) -> doc.OkDoc:
        node = self._runtime.node
        if site not in node.members:
            listed = ", ".join(sorted(node.members)) or "none"
            return doc.OkDoc(ok=False, message=f"{site or 'nobody'} is no peer; listed: {listed}")
        held = node.quarantined(site)
        self._runtime.lift_quarantine(site)
        what = "its quarantine is over" if held else "it was not in quarantine"
        return doc.OkDoc(ok=True, message=f"{site}: {what}, and its offences are forgotten")

    async def events(self, limit: int, since: int) -> doc.EventsDoc:
        rows = await asyncio.to_thread(self._runtime.events.tail, limit or 100, since)
        return doc.EventsDoc(events=tuple(rows))

    async def watch(self) -> AsyncIterator[doc.WatchDoc]:
        """Yield a document whenever something changed: at most twice a second, at least every five
        seconds."""
        while True:
            changed = self._runtime.changed
            yield doc.WatchDoc(status=await self.status(), peers=await self.peers(0))
            await asyncio.sleep(WATCH_INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 5.0)

    async def dump(self) -> doc.DumpDoc:
        r = self._runtime
        text = await asyncio.to_thread(
            r.recorder.text,
            site=r.config.site.site,
            federation=r.config.federation.federation,
            recorded_at=time.time(),
        )
        return doc.DumpDoc(recording=text, steps=text.count("\n") - 1, problem=r.recorder.problem)

    async def reach(self) -> doc.ReachDoc:
        """Dial every listed site, and ask each to dial this one."""
        sites = await self._runtime.reaching.look_now()
        return doc.ReachDoc(tuple(row for site in sorted(sites) for row in self._reach_rows(site)))

    def _reach_rows(self, site: str) -> list[doc.ReachRow]:
        found = self._runtime.reaching.found.get(site)
        return list(reach_rows(site, found, self._runtime.reaching.listen_fault)) if found else []

    async def pause(self) -> doc.OkDoc:
        self._runtime.pause(True)
        return doc.OkDoc(ok=True, message="paused: training stops before the next step")

    async def resume(self) -> doc.OkDoc:
        self._runtime.pause(False)
        return doc.OkDoc(ok=True, message="resumed")

    async def leave(self) -> doc.OkDoc:
        self._stop("an operator asked this site to leave")
        return doc.OkDoc(
            ok=True, message="leaving: peers are told, the checkpoint is written, the daemon ends"
        )

    async def reload(self) -> doc.OkDoc:
        try:
            changes = await self._reload()
        except GossipsegError as e:
            return doc.OkDoc(ok=False, message=f"{e} The previous list and key stay in force.")
        said = "; ".join(changes) or "nothing changed: they hold what was in force already"
        return doc.OkDoc(ok=True, message=f"peers.yaml and this site's key were read again: {said}")

    # ------------------------------------------------------------ parts

    @property
    def _ids(self) -> dict[str, str]:
        if self._known_ids[0] is not self._runtime.config:
            self._known_ids = (self._runtime.config, site_ids(self._runtime))
        return self._known_ids[1]

    def reasons(self, concerns: Sequence[doc.ConcernRow] | None = None) -> tuple[str, ...]:
        """Why this site is not simply ok. `concerns`: the present ones, where they are known already."""
        r = self._runtime
        if concerns is None:
            concerns = current_concerns(r, time.monotonic())
        one_way = {c.site for c in concerns if c.code == "calls_in_only"}
        reasons = []
        if r.worker.status.state in UNWELL:
            reasons.append(f"training: {r.worker.status.state}: {r.worker.status.reason}")
        reasons.extend(r.training.warnings.values())
        for name, member in sorted(r.node.members.items()):
            if member.refused:
                reasons.append(f"{name}: refused: {member.refused}")
            elif member.quarantined_until is not None:
                reasons.append(f"{name}: {_quarantine_text(member)}")
            elif member.state in (MemberState.SUSPECT, MemberState.DEAD) and name not in one_way:
                reasons.append(f"{name}: {member.state.value}: {member.reason}")
        if (view := r.node.rounds_view) is not None:
            if view.last is not None and view.last.absent:
                without = ", ".join(f"{site} ({reason})" for site, reason in view.last.absent)
                reasons.append(f"round {view.last.round} was closed without {without}")
            if view.state == "alone":
                reasons.append(f"this site trains alone: {view.reason}")
        reasons.extend(sentence(c) for c in concerns)
        reasons.extend(text for _, text in self.expiring().values())
        for name in sorted(r.node.members):
            ahead_s = r.transport.clock_ahead_s(name, time.time())
            if ahead_s is not None and abs(ahead_s) > CLOCK_TOLERANCE_S:
                reasons.append(clock_text(name, ahead_s))
        return tuple(reasons)

    def expiring(self) -> Mapping[Site, tuple[float, str]]:
        """Site → days left and a warning, for certificates that end within 30 days or have ended."""
        return certificate_expiry.warnings(self._runtime.config, self._days_left(), time.time())

    def _days_left(self) -> float | None:
        identity = self._identity()
        return identity.days_left(time.time()) if identity is not None else None

    def _member_counts(self) -> doc.MemberCounts:
        members = self._runtime.node.members.values()
        counts = Counter(m.state.value for m in members)
        counts["refused"] = sum(1 for m in members if m.refused)
        return doc.MemberCounts(**counts)

    def _worker(self) -> doc.WorkerStatus:
        return doc.WorkerStatus(**dataclasses.asdict(self._runtime.worker.status))

    def _peer(self, name: str, address: str) -> doc.PeerRow:
        r, node = self._runtime, self._runtime.node
        member, traffic = node.members.get(name), r.transport.traffic(name)
        info = member.info if member else None
        heard = member.last_heard if member else None
        return doc.PeerRow(
            site=name,
            id=self._ids.get(name, ""),
            address=(member.address if member and member.address else address),
            state=_state(member),
            reason=_reason(member),
            round=info.round if info else None,
            cases=info.cases if info else None,
            phase=info.phase.value if info else "",
            last_seen_s=time.monotonic() - heard if heard is not None else None,
            rtt_ms=member.rtt_s * 1000 if member and member.rtt_s is not None else None,
            sent=node.count("sent", name),
            received=node.count("received", name),
            refused=member.refused if member else "",
            quarantined_s=_quarantined_s(member),
            offence=member.offence if member else "",
            bytes_out=traffic.bytes_out,
            bytes_in=traffic.bytes_in,
        )


def _disk_free_bytes(path: str) -> int:
    """Free bytes; 0 where the folder is gone, because the status must be shown all the same."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def _state(member: Member | None) -> str:
    if member is None:
        return "unseen"
    if member.refused:
        return "refused"
    return "quarantined" if member.quarantined_until is not None and member.live else member.state.value


def _reason(member: Member | None) -> str:
    if member is None:
        return ""
    if member.refused or member.quarantined_until is None:
        return member.refused or member.reason
    return "; ".join(filter(None, (member.reason, _quarantine_text(member))))


def _quarantined_s(member: Member | None) -> float | None:
    if member is None or member.quarantined_until is None:
        return None
    return max(0.0, member.quarantined_until - time.monotonic())


def _quarantine_text(member: Member) -> str:
    """Why and until when, for people."""
    end = time.time() + (_quarantined_s(member) or 0.0)
    return f"quarantined until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(end))}: {member.offence}"


def own_network(network: NetworkParams | None) -> str:
    """The personal model's own network in words; "" where it has the shared model's."""
    return "" if network is None else f"{network.name}, width {network.width}"


def site_ids(runtime: Runtime) -> dict[str, str]:
    """Site → ID of its first listed certificate; empty in insecure mode."""
    ids = {}
    for site in runtime.config.federation.sites:
        if site.certificate:
            ids[site.name] = trust.site_id(site.certificate[0].encode())
    return ids
