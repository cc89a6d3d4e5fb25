"""Real daemons for tests: makes a small federation on loopback (or in namespaces), starts, asks, kills.

Every wait polls a condition with a deadline; on a timeout the daemons' last log lines are shown.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from gossipseg import trust
from gossipseg.errors import DaemonUnreachable, LocalError
from gossipseg.testbed import synthetic
from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import PeerRow, StatusDoc

TASK = {
    "name": "lesions",
    "channels": 1,
    "labels": {0: "background", 1: "lesion"},
    "label_map": {255: 1},
    "patch_size": [32, 32],
}
TRAINING = {"steps_per_round": 6, "batch_size": 2, "learning_rate": 0.002}
PORTS, PORTS_EACH = 12_000, 1_250
"""Below the range from which systems take a connection's own port; as many for each test process."""
POLL_S = 0.1
PATIENCE_S = 180.0


_drawn = itertools.count(os.getpid())


def free_ports(count: int) -> list[int]:
    """Ports that neither a test beside this one nor a connection takes before a daemon listens on them."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    found: list[int] = []
    while len(found) < count:
        port = PORTS + process * PORTS_EACH + next(_drawn) % PORTS_EACH
        with socket.socket() as s, contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", port))
            found.append(port)
    return found


@dataclass
class Site:
    """One daemon of a test federation."""

    name: str
    folder: Path
    address: str
    prefix: Sequence[str] = ()
    """Put before the command, such as `ip netns exec NAME`."""
    process: subprocess.Popen[bytes] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    stderr: int | None = None
    """Where its standard error goes; None: with standard output to daemon.log."""

    @property
    def config(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def socket(self) -> Path:
        return self.folder / "state" / "control.sock"

    @property
    def log(self) -> str:
        path = self.folder / "daemon.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else "(no log)"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *flags: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **self.env}
        command = [*self.prefix, sys.executable, "-m", "gossipseg.daemon.main", "--config", str(self.config)]
        with (self.folder / "daemon.log").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": self.stderr or log}
            self.process = subprocess.Popen([*command, *flags], env=env, **streams)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Send a signal and wait for the exit; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end in {timeout_s} s\n{self.log}") from None
        finally:
            self.process = None

    def status(self) -> StatusDoc | None:
        """What the daemon says of itself; None while it does not answer."""
        try:
            with ControlClient(self.socket) as client:
                return client.status()
        except (DaemonUnreachable, LocalError):
            return None

    def peer(self, name: str) -> PeerRow | None:
        try:
            with ControlClient(self.socket) as client:
                return next((p for p in client.peers().peers if p.site == name), None)
        except (DaemonUnreachable, LocalError):
            return None

    def events(self, *names: str) -> list[Mapping[str, Any]]:
        """The event log, or the named events in it; empty while the daemon does not answer."""
        try:
            with ControlClient(self.socket) as client:
                return [e for e in client.events(limit=5000).events if not names or e["event"] in names]
        except DaemonUnreachable:
            return []

    def edit(self, **changes: Any) -> None:
        """Change keys of site.yaml."""
        doc = yaml.safe_load(self.config.read_text())
        self.config.write_text(yaml.safe_dump({**doc, **changes}, sort_keys=False))


@dataclass
class Federation:
    """Sites by name, and their common peers.yaml."""

    root: Path
    sites: dict[str, Site]

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    @property
    def peers_file(self) -> Path:
        return self.root / "peers.yaml"

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change peers.yaml for all."""
        doc = yaml.safe_load(self.peers_file.read_text())
        change(doc)
        self.peers_file.write_text(yaml.safe_dump(doc, sort_keys=False))

    def until(self, what: str, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Wait until the condition holds. Fails, with everybody's log, when it does not."""
        deadline = time.monotonic() + patience_s
        while not condition():
            ended = [
                s.name for s in self.sites.values() if s.process is not None and s.process.poll() is not None
            ]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(f"--- {s.name}\n{s.log}" for s in self.sites.values())
                problem = f"{ended} ended while waiting" if ended else f"not within {patience_s:.0f} s"
                raise AssertionError(f"{problem}: {what}\n{logs}")
            time.sleep(POLL_S)

    def round_of(self, name: str) -> int:
        status = self[name].status()
        return status.round if status else -1

    def until_round(self, name: str, number: int, patience_s: float = PATIENCE_S) -> None:
        self.until(f"{name} at round {number}", lambda: self.round_of(name) >= number, patience_s)

    def well(self, name: str) -> bool:
        """No reason for concern. A slow disk is the machine's affair, and is told for ten minutes."""
        status = self[name].status()
        if status is None or status.state == "failed":
            return False
        return all(reason.startswith("the disk is slow") for reason in status.reasons)

    def sees(self, who: str, whom: str, state: str) -> bool:
        row = self[who].peer(whom)
        return row is not None and row.state == state


@contextmanager
def federation(
    root: Path,
    names: Sequence[str],
    *,
    addresses: Mapping[str, str] | None = None,
    prefixes: Mapping[str, Sequence[str]] | None = None,
    site: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Iterator[Federation]:
    """Files for the named sites; none is started. All that run at the end are killed by their id.

    `site`: keys of every site.yaml; further keywords replace sections of peers.yaml. Models are pushed, in
    float16, unless the sections say otherwise.
    """
    ports = free_ports(len(names))
    made = {}
    listed = []
    hospitals = synthetic.hospitals(len(names))
    for i, (name, port, hospital) in enumerate(zip(names, ports, hospitals, strict=True)):
        folder = root / name
        address = (addresses or {}).get(name, f"127.0.0.1:{port}")
        identity = trust.create_identity(name, folder / "identity")
        write_data(folder / "data", hospital, i)
        doc = {
            "site": name,
            "peers": str(root / "peers.yaml"),
            "data": {"path": "data"},
            "listen": address,
            "device": {"device": "cpu", "threads": 1},
            "disk_reserve_bytes": 1 << 20,
            **(site or {}),
        }
        (folder / "site.yaml").write_text(yaml.safe_dump(doc, sort_keys=False))
        listed.append({"name": name, "address": address, "certificate": identity.certificate_pem.decode()})
        made[name] = Site(name, folder, address, (prefixes or {}).get(name, ()))
    peers = {
        "federation": "test",
        "task": TASK,
        "network": {"width": 4},
        "training": TRAINING,
        "gossip": {"warmup_rounds": 1, "sender_rate": 1.0},
        "membership": {"preset": "local"},
        "wire": {"dtype": "float16"},
        **sections,
        "sites": listed,
    }
    peers["gossip"] = {"exchange": "push", **peers["gossip"]}
    (root / "peers.yaml").write_text(yaml.safe_dump(peers, sort_keys=False))
    try:
        yield Federation(root, made)
    finally:
        for one in made.values():
            if one.process is not None and one.process.poll() is None:
                one.end(signal.SIGKILL)


def write_data(folder: Path, hospital: synthetic.Hospital, index: int) -> None:
    """A few synthetic cases; small, for tests of the machinery and not of the learning."""
    small = replace(hospital, cases=(4 + 2 * index, 2, 2))
    synthetic.write_site(folder, small, seed=0, index=index, size_px=48)
