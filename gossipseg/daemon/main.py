"""gossipsegd: reads the configuration, connects the parts, obeys signals.

Start-up: configuration (78) → lock (75) → identity → port → worker. The worker's first report may still end
the daemon with 78 or 65. systemd is told READY once peers and gossipctl can be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

import msgspec

from gossipseg import __version__
from gossipseg import config as configuration
from gossipseg.bridge.node_setup import node_setup
from gossipseg.core import events
from gossipseg.core.effects import Snapshot
from gossipseg.core.node import NodeState
from gossipseg.daemon.control.service import Service
from gossipseg.daemon.listening import listen
from gossipseg.daemon.notify import Notifier
from gossipseg.daemon.observe import certificate_expiry, logs
from gossipseg.daemon.observe.metrics import Exporter
from gossipseg.daemon.observe.outlet import RotatingFile
from gossipseg.daemon.recording.recorder import Recorder
from gossipseg.daemon.reload import Reload, endpoints, listed, listed_ids, load_trust, prepare
from gossipseg.daemon.runtime import Runtime
from gossipseg.daemon.worker.process import UNWELL, require_state_dir
from gossipseg.discovery import MdnsDiscovery
from gossipseg.ends import in_words
from gossipseg.errors import EXIT_FAILED, EXIT_OK, ConfigError, GossipsegError
from gossipseg.store import DirectoryLock, EventLog, ModelStore, StateFile
from gossipseg.wire import health
from gossipseg.wire.control import ControlServer
from gossipseg.wire.documents import DiscoveryStatus
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.limits import PeerLimits
from gossipseg.wire.pacing import Throttle

log = logging.getLogger(__name__)
HEALTH_INTERVAL_S = 0.5
MACHINE_INTERVAL_S = 1.0


class Daemon:
    """One site's daemon, from start to exit."""

    def __init__(self, config: configuration.Config, reread: argparse.Namespace) -> None:
        self.config, self._reread = config, reread
        self.notifier = Notifier.from_env()
        self.identity, self.trust = load_trust(config)
        self._ended: asyncio.Future[tuple[str, GossipsegError | None]] | None = None
        self._foreign: list[str] = []
        self._mdns: MdnsDiscovery | None = None
        self.exporter: Exporter | None = None
        self.health = health.HealthBoard()
        self._up = self._hung_up = False
        self._reloading = asyncio.Lock()

    async def run(self) -> int:
        """Run until a signal, `gossipctl leave` or an error; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        self.assemble()
        service = Service(
            self.runtime,
            identity=lambda: self.identity,
            stop=self.end,
            reload=self.reload,
            discovery=self.discovery_status,
        )
        control = ControlServer(self.config.control_socket, service, self.health)
        await self.runtime.start()
        self.runtime.spawn(certificate_expiry.watch(service.expiring, self.runtime.note, time.time), "expiry")
        try:
            await control.start()
            self.runtime.spawn(self.runtime.places.run(control), "places")
            await self._export_metrics(service)
        except GossipsegError as e:  # the worker runs already: it is ended like at any other end
            self.end("failed", e)
        self._up = True
        if not self._ended.done():
            self._mdns = self._discovery()
            if self._mdns is not None:
                await self._mdns.start()
            if self._hung_up:
                self._hangup()
            self.notifier.ready(self._status)
        works = (self._feed_watchdog(), self._keep_health(), self._watch_machine())
        beside = [asyncio.create_task(work) for work in works]
        reason, error = await self._ended
        self.notifier.stopping(reason)
        for task in beside:
            task.cancel()
        goodbyes = [self.runtime.stop(reason)]
        if self._mdns is not None:
            goodbyes.append(self._mdns.close())
        await asyncio.gather(*goodbyes)
        if self.exporter is not None:
            await self.exporter.close()
        await control.close()
        if error is not None:
            logs.say(f"gossipsegd: {error}")
            return error.exit_code
        return EXIT_OK

    def assemble(self, limits: PeerLimits | None = None) -> None:
        """Make transport and runtime, and start neither. `limits` stands for what the configuration gives a
        peer."""
        self.transport = self._transport(limits)
        self.runtime = self._runtime()

    def end(self, reason: str, error: GossipsegError | None = None) -> None:
        """Begin the shutdown; the first reason counts."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result((reason, error))

    async def reload(self) -> tuple[str, ...]:
        """Read the list and this site's key again; returns the changes, one sentence each.

        Raises ConfigError or LocalError, changing nothing, when they are invalid. Files are read beside the
        event loop. A large file, or a share that does not answer, must not make this site suspect.
        """
        async with self._reloading:
            try:
                new = await asyncio.to_thread(self._reread_files)
                self.transport.set_peers(endpoints(new.config), new.identity)
            except GossipsegError as e:
                self.runtime.note("config_refused", reason=str(e))
                raise
            return self._take_in(new)

    def _reread_files(self) -> Reload:
        return prepare(self.config, self.identity, lambda: load_config(self._reread))

    def _take_in(self, new: Reload) -> tuple[str, ...]:
        self.config, self.trust, self.identity = new.config, new.trust, new.identity
        self.runtime.config, self.runtime.intake.verifier = new.config, new.trust
        if self._mdns is not None:
            self._foreign.clear()  # what is still foreign is reported again
            self._mdns.set_listed(listed_ids(new.config))
            if new.rekeyed:
                self.runtime.spawn(self._announce_anew(self._mdns), "mdns")
        addresses = {s.name: s.address for s in new.config.others}
        self.runtime.worker.relist([site.name for site in new.config.federation.sites])
        self.runtime.worker.try_again()
        self.runtime.inject(events.SitesChanged(addresses, new.rekeyed, listed(new.config)))
        self.runtime.note(
            "config_reloaded", sites=len(new.config.federation.sites), changes=list(new.changes)
        )
        return new.changes

    def _hangup(self) -> None:
        if not self._up:  # the node has not begun yet: once it has
            self._hung_up = True
            return
        self.runtime.spawn(self._reload_for_signal(), "reload")

    async def _reload_for_signal(self) -> None:
        self.notifier.reloading(time.monotonic_ns() // 1000)
        try:
            with contextlib.suppress(GossipsegError):  # it is noted already; the old list stays in force
                await self.reload()
        finally:
            self.notifier.ready(self._status)

    @property
    def _status(self) -> str:
        return f"{self.config.site.site} in {self.config.federation.federation}"

    def _transport(self, limits: PeerLimits | None) -> GrpcTransport:
        site, federation = self.config.site, self.config.federation
        transfer_s = max(federation.gossip.transfer_timeout_s, federation.rounds.transfer_timeout_s)
        transport = GrpcTransport(
            site.site,
            listen=site.listen,
            identity=self.identity,
            peers=endpoints(self.config),
            insecure=site.insecure,
            max_parallel_transfers=site.max_parallel_transfers,
            reconnect_max_s=federation.membership.probe_interval_s,
            limits=limits or PeerLimits(stream_s=transfer_s),
        )
        transport.tell_clock(time.time)
        if (rate := site.transfers.max_bytes_per_s) is not None:
            transport.throttle = Throttle(rate, time.monotonic)
        return transport

    def _runtime(self) -> Runtime:
        f, s = self.config.federation, self.config.site
        state_dir = Path(s.state_dir)
        state = StateFile(state_dir / "node.json")
        event_log = EventLog(state_dir / "events.jsonl")
        snapshot = remembered(state, event_log)
        recorder = Recorder(self._sign)
        setup = node_setup(
            f,
            s.site,
            address=s.advertise or self.config.me.address,
            sites={o.name: o.address for o in self.config.others},
            contract=configuration.contract(f),
            rounds=s.rounds,
            rng=random.Random(f"{f.seed}/{s.site}/{os.urandom(16).hex()}"),
            sign=recorder.sign,
            snapshot=snapshot,
            quarantine=s.quarantine,
            sequence_floor=time.time_ns() // 1_000_000,
            listed=listed(self.config),
        )
        return Runtime(
            self.config,
            NodeState(setup),
            self.transport,
            ModelStore(state_dir / "models"),
            state,
            event_log,
            self.trust,
            lambda error: self.end("failed", error),
            recorder=recorder,
            worker_socket=state_dir / "worker.sock",
        )

    def _sign(self, payload: bytes) -> bytes:
        """Sign with the key in use at this moment."""
        return self.identity.sign(payload) if self.identity is not None else b""

    def discovery_status(self) -> DiscoveryStatus:
        """How addresses are found, and which mDNS announcements were not used."""
        wanted, mdns = self.config.site.discovery, self._mdns
        return DiscoveryStatus(
            static=wanted.static,
            mdns=mdns is not None and mdns.active,
            foreign=tuple(self._foreign),
            reason=mdns.reason if mdns is not None else "",
        )

    def _discovery(self) -> MdnsDiscovery | None:
        d = self.config.site.discovery
        if not d.mdns or self.identity is None:
            return None
        host, _, port = (self.config.site.advertise or self.config.site.listen).rpartition(":")
        return MdnsDiscovery(
            site=self.config.site.site,
            site_id=self.identity.site_id,
            federation=self.config.federation.federation,
            host=host.strip("[]"),
            port=int(port),
            listed=listed_ids(self.config),
            on_hint=self.transport.hint_address,
            on_foreign=self._saw_foreign,
            interfaces=d.interfaces,
        )

    async def _announce_anew(self, old: MdnsDiscovery) -> None:
        """Announce again: on the local link a site is announced by the ID of its key."""
        await old.close()
        self._mdns = self._discovery()
        if self._mdns is not None:
            await self._mdns.start()

    def _saw_foreign(self, what: str) -> None:
        if what not in self._foreign:
            self._foreign.append(what)
            self.runtime.note("foreign_federation", reason=what)

    async def _export_metrics(self, service: Service) -> None:
        wanted = self.config.site.metrics
        if wanted.port is None:
            return
        exporter = Exporter(self.runtime, wanted.host, wanted.port, lambda: bool(service.reasons()))
        self.exporter = exporter

        async def start() -> None:
            await exporter.start()
            self.runtime.note("metrics_served", address=f"http://{wanted.host}:{exporter.port}/metrics")

        await listen(self.runtime, "metrics", start)

    async def _keep_health(self) -> None:
        """Tell the health service which services run, at every change, with a limited rate."""
        while True:
            changed = self.runtime.changed
            training = self.runtime.worker.status.state not in UNWELL
            services = {health.ALL: True, health.CONTROL: True, health.PEER: True, health.TRAINING: training}
            await self.health.tell(services)
            await asyncio.sleep(HEALTH_INTERVAL_S)
            await changed.wait()

    async def _watch_machine(self) -> None:
        """Show silent obstacles in the status: logs that nobody reads, a slow disk."""
        training, told = self.runtime.training, ""
        while True:
            disk, before = self.runtime.disk.problem(), dict(training.warnings)
            training.warn("log", logs.problem())
            training.warn("disk", disk)
            if bool(disk) != bool(told):
                self.runtime.note("disk_slow" if disk else "disk_well", reason=disk)
            told = disk
            if training.warnings.keys() != before.keys():
                self.runtime.tell_watchers()
            await asyncio.sleep(MACHINE_INTERVAL_S)

    async def _feed_watchdog(self) -> None:
        interval = self.notifier.watchdog_interval_s
        while interval is not None:
            self.notifier.watchdog()
            await asyncio.sleep(interval)


def remembered(state: StateFile, event_log: EventLog) -> Snapshot:
    """The state at the node's last shutdown; if the file is damaged, nothing, and a warning in the logs.

    A damaged file loses nothing of the model: round and weights are the worker's, and peers supply the rest.
    """
    doc = state.load()
    try:
        snapshot = msgspec.convert(doc or {}, Snapshot)  # without fields that a later version wrote
    except (msgspec.ValidationError, ValueError):  # of the wrong form, or a name in it is no text
        snapshot, state.corrupt_copy = Snapshot(), state.path.with_name(state.path.name + ".corrupt")
        state.path.replace(state.corrupt_copy)
    if state.corrupt_copy is not None:
        reason = f"{state.path.name} is damaged and was set aside as {state.corrupt_copy.name}"
        log.warning("", extra={"event": "state_damaged", "fields": {"reason": reason}})
        event_log.append("state_damaged", t=time.time(), reason=reason)
    return snapshot


def load_config(args: argparse.Namespace) -> configuration.Config:
    """The effective configuration for these command-line arguments."""
    overrides = dict(pair.split("=", 1) for pair in args.set)
    for key in ("listen", "state_dir", "rounds"):
        if getattr(args, key) is not None:
            overrides[key] = str(getattr(args, key))
    if args.device is not None:
        overrides["device.device"] = args.device
    return configuration.load(Path(args.config), overrides=overrides)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("gossipsegd", description="One site of a gossipseg federation.")
    parser.add_argument("--config", default=os.environ.get("GOSSIPSEG_CONFIG", "site.yaml"), help="site.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key")
    parser.add_argument("--listen", help="host:port to listen on")
    parser.add_argument("--state-dir", help="folder of checkpoints, models and the event log")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "--rounds", type=int, help="training budget of this site; training.rounds may end it earlier"
    )
    parser.add_argument("--version", action="version", version=f"gossipsegd {__version__}")
    args = parser.parse_args(argv)
    if bad := [pair for pair in args.set if "=" not in pair]:
        parser.error(f"--set {bad[0]}: write KEY=VALUE")
    return args


def main(argv: list[str] | None = None) -> int:
    """Entry point of gossipsegd; returns the exit code. Every error ends in words, never in a bare
    traceback."""
    args = parse(argv)
    try:
        return _run(args)
    except GossipsegError as e:
        logs.release()
        logs.say(f"gossipsegd: {e}")
        return e.exit_code
    except KeyboardInterrupt:
        return EXIT_OK
    except Exception as e:
        logs.release()
        log.critical("gossipsegd must end", exc_info=e, extra={"event": "internal_error"})
        logs.say(f"gossipsegd: {in_words(e)}")
        return EXIT_FAILED
    finally:
        logs.close()


def _run(args: argparse.Namespace) -> int:
    faulthandler.enable(2)  # of a crash in C, straight to the file descriptor
    logs.hold()
    config = load_config(args)
    logs.setup(config.site.log.format, config.site.log.level, _log_file(config))
    logs.capture_stderr()
    os.umask(0o077)
    state_dir = Path(config.site.state_dir)
    require_state_dir(state_dir)
    with DirectoryLock(state_dir / "daemon.lock"):
        return asyncio.run(Daemon(config, args).run())


def _log_file(config: configuration.Config) -> RotatingFile | None:
    wanted = config.site.log
    if wanted.file is None:
        return None
    try:
        return RotatingFile(Path(wanted.file), wanted.file_max_bytes, wanted.file_count)
    except OSError as e:
        raise ConfigError(
            f"the log file cannot be opened: {e.strerror}",
            file=config.site_path,
            key="log.file",
            value=wanted.file,
            remedy="Make its folder one that the daemon's user may write to, or leave the key out.",
        ) from None


if __name__ == "__main__":
    sys.exit(main())
