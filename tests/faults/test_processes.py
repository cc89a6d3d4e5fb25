"""Daemons that stand still, exist twice, are many, are of another version, or whose clock jumps."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossipseg.wire.control import ControlClient
from tests.e2e.federation import Federation, Site, federation, free_ports
from tests.faults.shims import WallClock, protocol

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.faults]
DAY_S = 86_400.0
Seen = Callable[[str], None]


def watch(f: Federation, for_s: float) -> None:
    """Let the daemons run for so long; none may end."""
    end = time.monotonic() + for_s
    f.until("the time is over", lambda: time.monotonic() >= end, for_s + 60)


def seconds_until(f: Federation, what: str, condition: Callable[[], object], at_most_s: float) -> float:
    begin = time.monotonic()
    f.until(what, condition, at_most_s)
    return time.monotonic() - begin


def all_alive(f: Federation, *names: str) -> bool:
    return all(f.sees(a, b, "alive") for a in names for b in names if a != b)


def merged(site: Site) -> int:
    return len(site.events("visit_merged"))


def test_a_daemon_that_stands_still_is_suspected_and_heals(tmp_path: Path, seen: Seen) -> None:
    with federation(tmp_path, ["north", "south"], algorithm={"name": "local"}) as f:
        north, south = f["north"], f["south"]
        for site in f.sites.values():
            site.start()
        f.until("they see each other", lambda: all_alive(f, "north", "south"))
        before = len(south.events("member_suspect"))
        north.send(signal.SIGSTOP)
        accused = lambda: len(south.events("member_suspect")) > before  # noqa: E731
        suspected_s = seconds_until(f, "suspected", accused, 30)
        north.send(signal.SIGCONT)
        short_s = seconds_until(f, "healed", lambda: all_alive(f, "north", "south"), 30)

        north.send(signal.SIGSTOP)
        dead_s = seconds_until(f, "dead", lambda: f.sees("south", "north", "dead"), 60)
        north.send(signal.SIGCONT)
        long_s = seconds_until(f, "healed", lambda: all_alive(f, "north", "south"), 60)
        assert north.events("member_dead") == [], "the one that stood still accuses nobody falsely"
        assert not north.events("internal_error") and not south.events("internal_error")
        seen(f"suspected after {suspected_s:.1f} s and healed {short_s:.1f} s after SIGCONT; dead after "
             f"{dead_s:.1f} s and healed {long_s:.1f} s after SIGCONT")  # fmt: skip


def test_a_second_daemon_with_the_same_key_is_told_of_and_stops_nobody(tmp_path: Path, seen: Seen) -> None:
    names = ("north", "south", "east")
    with federation(tmp_path, names, algorithm={"name": "local"}) as f:
        for name in names:
            f[name].start()
        f.until("all see each other", lambda: all_alive(f, *names))
        twin = twin_of(f["south"], tmp_path / "twin")
        try:
            begin = time.monotonic()
            twin.start()
            everybody = [*f.sites.values(), twin]
            f.until("it is told of", lambda: any(s.events("duplicate_site") for s in everybody), 60)
            told_s = time.monotonic() - begin
            tellers = [s.folder.name for s in everybody if s.events("duplicate_site")]
            at = f.round_of("north")
            f.until_round("north", at + 2)
            assert f.sees("north", "east", "alive") and f.sees("east", "north", "alive")
        finally:
            twin.end(signal.SIGKILL)
        healed_s = seconds_until(f, "one is left", lambda: all_alive(f, *names), 90)
        seen(f"told of after {told_s:.1f} s by {', '.join(tellers)}; the others trained on; "
             f"all alive {healed_s:.1f} s after it was stopped")  # fmt: skip


def twin_of(site: Site, folder: Path) -> Site:
    """The same site once more: same key, another folder and port, announced as its address."""
    shutil.copytree(site.folder / "identity", folder / "identity")
    shutil.copytree(site.folder / "data", folder / "data")
    shutil.copy(site.config, folder / "site.yaml")
    (port,) = free_ports(1)
    twin = replace(site, folder=folder, address=f"127.0.0.1:{port}", process=None)
    twin.edit(listen=twin.address, advertise=twin.address)
    return twin


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_clock_that_jumps_by_a_day_changes_nothing(tmp_path: Path, seen: Seen, jump_s: float) -> None:
    clock = WallClock(tmp_path / "shim")
    with federation(tmp_path, ["north", "south"]) as f:
        f["north"].env = clock.env
        for site in f.sites.values():
            site.start()
        f.until("a model was merged", lambda: merged(f["north"]) and merged(f["south"]))
        before, at = merged(f["north"]), f.round_of("north")
        clock.jump(jump_s)
        begin = time.monotonic()
        f.until("models are merged as before", lambda: merged(f["north"]) >= before + 2)
        f.until_round("north", at + 3)
        took_s = time.monotonic() - begin
        log = f["north"].events()
        assert max(e["t"] for e in log) - min(e["t"] for e in log) > DAY_S - 600, "it did jump"
        assert [e["seq"] for e in log] == sorted(e["seq"] for e in log)
        for site in f.sites.values():
            assert not site.events("member_dead", "model_broken", "worker_lost", "internal_error")
        assert f["north"].end() == 0
        f["north"].start()
        f.until("it starts with that clock too", lambda: f["north"].events("worker_ready")[1:])
        seen(f"{merged(f['north']) - before} models merged in the {took_s:.0f} s after it; "
             "nobody suspected dead, no worker lost")  # fmt: skip


def test_a_rolling_upgrade_between_two_protocol_versions(tmp_path: Path, seen: Seen) -> None:
    both = {name: protocol(tmp_path / name, *span) for name, span in
            {"v1": (1, 1), "v1-2": (1, 2), "v2": (2, 2)}.items()}  # fmt: skip
    with federation(tmp_path, ["north", "south"]) as f:
        north, south = f["north"], f["south"]

        def begin(site: Site, version: str) -> None:
            assert site.end() == 0
            site.env = both[version]
            site.start()

        def models_move() -> None:
            counts = {s.name: merged(s) for s in (north, south)}
            f.until("models move both ways", lambda: all(merged(s) > counts[s.name] for s in (north, south)))

        begin(north, "v1"), begin(south, "v1-2")
        models_move()
        begin(south, "v2")  # too far ahead of the one that was not upgraded yet
        f.until(
            "refused", lambda: f.sees("north", "south", "refused") and f.sees("south", "north", "refused")
        )
        row = north.peer("south")
        assert row is not None and "protocol: 1-1 here, 2-2 there" in row.reason, row
        at = f.round_of("north")
        f.until_round("north", at + 2)
        begin(north, "v1-2")
        models_move()
        seen("1-1 with 1-2: models both ways; 1-1 with 2-2: refused by name on both sides, training goes on; "
             "after the upgrade models both ways again")  # fmt: skip


def test_twenty_daemons_at_once(tmp_path: Path, seen: Seen) -> None:
    """All begin their first round together: a site that had finished before the last one was up would
    refuse its models, and nothing would be exchanged."""
    names = [f"site-{i:02d}" for i in range(20)]
    sections: dict[str, Any] = {
        "network": {"width": 1},
        "training": {"steps_per_round": 2, "batch_size": 1, "learning_rate": 0.002},
        "membership": {"preset": "lan", "probe_timeout_s": 1.0},
        "site": {"rounds": 6},
    }
    begin = time.monotonic()
    with federation(tmp_path, names, **sections) as f:
        for name in names:
            f[name].start()
            f.until(f"{name} answers", lambda name=name: f[name].status() is not None)
            with ControlClient(f[name].socket) as client:
                client.pause()
        f.until("all see each other", lambda: all(alive_at(f, n) == len(names) - 1 for n in names), 300)
        met_s = time.monotonic() - begin
        f.until("all have a worker", lambda: all(f[n].events("worker_ready") for n in names), 300)
        begin = time.monotonic()
        for name in names:
            with ControlClient(f[name].socket) as client:
                client.resume()
        f.until("all have finished", lambda: all(phase(f, n) == "finished" for n in names), 600)
        done_s = time.monotonic() - begin
        log = [e for n in names for e in f[n].events("visit_merged", "internal_error", "worker_lost")]
        assert {e["event"] for e in log} == {"visit_merged"}
        receivers = {n for n in names if f[n].events("visit_merged")}
        codes = {f[n].end() for n in names}
        assert codes == {0}
        seen(f"all saw all after {met_s:.0f} s, all {len(names)} finished 6 rounds in {done_s:.0f} s, "
             f"{len(log)} models merged at {len(receivers)} sites")  # fmt: skip


def alive_at(f: Federation, name: str) -> int:
    status = f[name].status()
    return status.members.alive if status else -1


def phase(f: Federation, name: str) -> str:
    status = f[name].status()
    return status.phase if status else ""
