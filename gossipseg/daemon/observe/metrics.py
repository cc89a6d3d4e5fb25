"""The Prometheus endpoint: `gossipseg_…` metrics of the daemon, on a loopback port.

Labels are bounded: listed sites, known reason codes. Values are read on the event loop, so that no scrape
sees a half-made change. A stalled loop shows as a failed scrape.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gossipseg import __version__, trust
from gossipseg import config as configuration
from gossipseg.core.types import MemberState, Phase
from gossipseg.daemon.health import concerns
from gossipseg.daemon.observe import logs
from gossipseg.daemon.observe.counters import LAG_BUCKETS_S
from gossipseg.daemon.observe.metrics_server import ScrapeServer
from gossipseg.wire.listening import CannotListen, reason_of

if TYPE_CHECKING:
    from gossipseg.daemon.runtime import Runtime

LAG_INTERVAL_S = 1.0
ANSWER_TIMEOUT_S = 5.0
WORKER_STATES = ("starting", "ready", "training", "aggregating", "waiting", "restarting", "failed", "stopped")
SWAPS = {
    "mixed": "mixed",
    "copied": "copied",
    "kept": "kept",
    "swap_dropped": "dropped",
    "swap_in_doubt": "in_doubt",
    "swap_lost": "lost",
}
"""What the core counts of swaps → the label of the outcome."""
COUNTED = ("sent", "received", "merged", "refused", "kept_out", "reverted", "dropped")
WARNINGS = (
    "worker",
    "personal",
    "state",
    "events",
    "store",
    "audit",
    "privacy",
    "listen",
    "metrics",
    "log",
    "disk",
)


@dataclass(frozen=True, slots=True)
class Described:
    """One metric: counters are named with their `_total`."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS: dict[str, Described] = {
    "gossipseg_info": Described(
        "gauge", "Always 1.", ("site", "federation", "version", "algorithm", "exchange")
    ),
    "gossipseg_uptime_seconds": Described("gauge", "Since the daemon started."),
    "gossipseg_degraded": Described("gauge", "1 while `gossipctl status` names a reason for concern."),
    "gossipseg_warning": Described(
        "gauge",
        f"1 while this part ({', '.join(WARNINGS)}) has a warning.",
        ("part",),
    ),
    "gossipseg_concern": Described(
        "gauge", "1 while this is a reason for concern; docs/admin/troubleshooting.md has each.", ("reason",)
    ),
    "gossipseg_phase": Described("gauge", "1 for the phase the site is in.", ("phase",)),
    "gossipseg_round": Described("gauge", "Rounds that this site's model has trained."),
    "gossipseg_committed_round": Described("gauge", "Newest global model (under a coordinator)."),
    "gossipseg_rounds_total": Described("counter", "Rounds finished since the daemon started."),
    "gossipseg_training_loss": Described("gauge", "Loss last reported by the worker."),
    "gossipseg_validation_dice": Described("gauge", "Mean validation Dice of the deployment model."),
    "gossipseg_cases": Described("gauge", "Training cases at this site."),
    "gossipseg_inbox_models": Described("gauge", "Models that wait for their visit."),
    "gossipseg_members": Described("gauge", "Other listed sites in each state.", ("state",)),
    "gossipseg_peer_up": Described("gauge", "1 while the peer is alive and not refused.", ("peer",)),
    "gossipseg_peer_quarantined": Described("gauge", "1 while the peer is in quarantine.", ("peer",)),
    "gossipseg_peer_changes_total": Described(
        "counter", "Times that the peer entered a state.", ("peer", "state")
    ),
    "gossipseg_peer_rtt_seconds": Described("gauge", "Round trip of the last ping.", ("peer",)),
    "gossipseg_peer_silence_seconds": Described(
        "gauge", "Time since the last message of the peer.", ("peer",)
    ),
    "gossipseg_peer_forged_records_total": Described(
        "counter", "Messages of a peer with records that their signer did not sign.", ("peer",)
    ),
    "gossipseg_self_health": Described("gauge", "Lifeguard's score: 0 is healthy."),
    "gossipseg_wire_received_bytes_total": Described("counter", "Messages and models.", ("peer",)),
    "gossipseg_wire_sent_bytes_total": Described("counter", "Messages and models.", ("peer",)),
    "gossipseg_transfers_total": Described(
        "counter", "Streams of models that ended.", ("direction", "peer", "outcome")
    ),
    "gossipseg_transfers_active": Described("gauge", "Models being sent now."),
    "gossipseg_models_total": Described(
        "counter", "Outcomes of models, counted across restarts.", ("peer", "outcome")
    ),
    "gossipseg_swaps_total": Described(
        "counter",
        "Swaps by their end (mixed, copied, kept, dropped, in_doubt, lost), counted across restarts.",
        ("peer", "outcome"),
    ),
    "gossipseg_peer_set_aside": Described(
        "gauge", "1 while no swaps are made with the peer, because theirs did harm.", ("peer",)
    ),
    "gossipseg_refusals_total": Described(
        "counter", "Models refused: in, by this site; out, by the peer.", ("direction", "peer", "reason")
    ),
    "gossipseg_worker_state": Described("gauge", "1 for the state of the training worker.", ("state",)),
    "gossipseg_worker_restarts_total": Described("counter", "Times the worker was started again."),
    "gossipseg_certificate_expires_timestamp_seconds": Described(
        "gauge", "When the last of a site's listed certificates expires (Unix time).", ("site",)
    ),
    "gossipseg_disk_free_bytes": Described("gauge", "Free space of the state directory's file system."),
    "gossipseg_audit_lines_total": Described("counter", "Lines written to the audit log."),
    "gossipseg_audit_lost_lines_total": Described("counter", "Lines that the audit log could not keep."),
    "gossipseg_log_lines_lost_total": Described("counter", "Log lines lost because nothing read them."),
    "gossipseg_disk_slow_write_seconds": Described(
        "gauge", "How long the last slow write of the state took, for ten minutes after it; else 0."
    ),
    "gossipseg_event_loop_lag_seconds": Described("histogram", "How late the event loop was."),
}
"""All metrics of the daemon itself, beside prometheus_client's `process_…`."""


class _Families:
    """Samples by metric. A metric or label that METRICS does not list is a KeyError."""

    def __init__(self) -> None:
        self.made: dict[str, Metric] = {}

    def add(self, name: str, value: float | None, **labels: str) -> None:
        """Add one sample; None (not known yet) is left out."""
        if value is None:
            return
        described = METRICS[name]
        family: Any = self.made.get(name)
        if family is None:
            kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
            family = self.made[name] = kind(name, described.help, labels=described.labels)
        family.add_metric([labels[label] for label in described.labels], value)

    def one_of(self, name: str, states: Iterable[str], now: str, label: str) -> None:
        """Set 1 for the present state, 0 for the others."""
        for state in states:
            self.add(name, float(state == now), **{label: state})

    def histogram(self, name: str, bounds: Iterable[float], counts: list[int], total: float) -> None:
        """Make cumulative buckets from single counts."""
        buckets, so_far = [], 0
        for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        family = HistogramMetricFamily(name, METRICS[name].help)
        family.add_metric([], buckets, total)
        self.made[name] = family


def sample(r: Runtime, now_s: float, *, degraded: bool) -> list[Metric]:
    """All present metrics. `now_s` is monotonic. To be called on the event loop."""
    f = _Families()
    _site(f, r, now_s)
    f.add("gossipseg_degraded", float(degraded))
    there = {c.code for c in concerns.current_concerns(r, now_s)}
    for code in concerns.REMEDIES:
        f.add("gossipseg_concern", float(code in there), reason=code)
    for site in r.config.others:
        _peer(f, r, site.name, now_s)
    members = Counter(m.state.value for m in r.node.members.values())
    for state in MemberState:
        f.add("gossipseg_members", members[state.value], state=state.value)
    _counted(f, r)
    for site_name, end_s in trust.last_ends(r.config.federation.sites).items():
        f.add("gossipseg_certificate_expires_timestamp_seconds", end_s, site=site_name)
    return list(f.made.values())


def _site(f: _Families, r: Runtime, now_s: float) -> None:
    federation, view = r.config.federation, r.training
    f.add(
        "gossipseg_info",
        1.0,
        site=r.config.site.site,
        federation=federation.federation,
        version=__version__,
        algorithm=federation.algorithm.name,
        exchange=federation.algorithm.exchange,
    )
    f.add("gossipseg_uptime_seconds", now_s - r.started_at)
    for part in WARNINGS:
        f.add("gossipseg_warning", float(part in view.warnings), part=part)
    f.one_of("gossipseg_phase", [p.value for p in Phase], r.node.phase.value, "phase")
    f.add("gossipseg_round", r.node.round)
    if (rounds := r.node.rounds_view) is not None:
        f.add("gossipseg_committed_round", rounds.committed)
    f.add("gossipseg_training_loss", view.loss)
    f.add("gossipseg_validation_dice", view.dice_val)
    f.add("gossipseg_cases", view.cases)
    f.add("gossipseg_inbox_models", len(r.node.inbox))
    f.add("gossipseg_self_health", r.node.self_health)
    f.add("gossipseg_transfers_active", len(r.calls.outgoing_models))
    f.one_of("gossipseg_worker_state", WORKER_STATES, r.worker.status.state, "state")
    f.add("gossipseg_worker_restarts_total", r.worker.status.restarts)
    f.add("gossipseg_disk_free_bytes", _disk_free_bytes(r.config.site.state_dir))
    f.add("gossipseg_log_lines_lost_total", logs.lost())
    f.add("gossipseg_disk_slow_write_seconds", r.disk.last_slow_s())
    f.add("gossipseg_audit_lines_total", r.audit.written)
    f.add("gossipseg_audit_lost_lines_total", r.audit.lost)


def _peer(f: _Families, r: Runtime, peer: str, now_s: float) -> None:
    member, traffic = r.node.members.get(peer), r.transport.traffic(peer)
    up = member is not None and member.state is MemberState.ALIVE and not member.refused
    f.add("gossipseg_peer_up", float(up), peer=peer)
    quarantined = member is not None and member.quarantined_until is not None
    f.add("gossipseg_peer_quarantined", float(quarantined), peer=peer)
    if member is not None:
        f.add("gossipseg_peer_rtt_seconds", member.rtt_s, peer=peer)
        heard = member.last_heard
        f.add("gossipseg_peer_silence_seconds", None if heard is None else now_s - heard, peer=peer)
    f.add("gossipseg_wire_received_bytes_total", traffic.bytes_in, peer=peer)
    f.add("gossipseg_wire_sent_bytes_total", traffic.bytes_out, peer=peer)
    for outcome in COUNTED:
        f.add("gossipseg_models_total", r.node.count(outcome, peer), peer=peer, outcome=outcome)
    _swaps(f, r, peer)


def _swaps(f: _Families, r: Runtime, peer: str) -> None:
    if not configuration.swaps(r.config.federation):
        return
    for what, outcome in SWAPS.items():
        f.add("gossipseg_swaps_total", r.node.count(what, peer), peer=peer, outcome=outcome)
    f.add("gossipseg_peer_set_aside", float(peer in r.node.set_aside), peer=peer)


def _counted(f: _Families, r: Runtime) -> None:
    counts, listed = r.counters, {s.name for s in r.config.others}
    f.add("gossipseg_rounds_total", counts.rounds)
    for (direction, peer, reason), n in counts.refusals.items():
        if peer in listed:  # removed from the list since: its series ends
            f.add("gossipseg_refusals_total", n, direction=direction, peer=peer, reason=reason)
    for (direction, peer, outcome), n in counts.transfers.items():
        if peer in listed:
            f.add("gossipseg_transfers_total", n, direction=direction, peer=peer, outcome=outcome)
    for (peer, state), n in counts.changes.items():
        if peer in listed:
            f.add("gossipseg_peer_changes_total", n, peer=peer, state=state)
    for peer in sorted(listed):
        f.add("gossipseg_peer_forged_records_total", counts.forged[peer], peer=peer)
    f.histogram("gossipseg_event_loop_lag_seconds", LAG_BUCKETS_S, counts.lag_buckets, counts.lag_sum_s)


def _disk_free_bytes(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


class _Scrape(Collector):
    """Asks the event loop from the server's threads."""

    def __init__(self, runtime: Runtime, degraded: Callable[[], bool]) -> None:
        self._runtime, self._degraded = runtime, degraded
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        return asyncio.run_coroutine_threadsafe(self._sample(), self._loop).result(ANSWER_TIMEOUT_S)

    async def _sample(self) -> list[Metric]:
        return sample(self._runtime, time.monotonic(), degraded=self._degraded())

    def describe(self) -> Iterable[Metric]:
        """Declare nothing: no value is read before the first scrape."""
        return []


class Exporter:
    """The endpoint `http://host:port/metrics`, and the watch over the event loop's lag."""

    def __init__(self, runtime: Runtime, host: str, port: int, degraded: Callable[[], bool]) -> None:
        """`degraded`: whether the status names a reason for concern."""
        self._runtime, self._host, self._wanted_port = runtime, host, port
        self._degraded = degraded
        self._server: ScrapeServer | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises CannotListen when the port is taken or the address does not exist."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(self._runtime, self._degraded))
        ProcessCollector(registry=registry)
        try:
            self._server = await asyncio.to_thread(ScrapeServer, self._host, self._wanted_port, registry)
        except OSError as e:
            raise CannotListen(
                f"{self._host}:{self._wanted_port}: metrics cannot be served there: {e.strerror or e}. "
                "Set another metrics.port in site.yaml, or leave it out.",
                reason_of(e),
            ) from e
        self._watch = asyncio.create_task(self._watch_lag())

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._server.server_port if self._server is not None else 0

    async def close(self) -> None:
        """Stop listening."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self._runtime.counters.lagged(max(0.0, loop.time() - due))
