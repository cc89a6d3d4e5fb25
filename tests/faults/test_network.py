"""Loss, one-way cuts, a flapping link and a slow one, between real daemons in network namespaces."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation, federation
from tests.faults.rig import Lan, lan, needs_namespaces

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow, needs_namespaces]
TRIO = ("north", "south", "east")
QUICK = {"preset": "local", "probe_timeout_s": 0.5}
SMALL = {"name": "sanet", "width": 2}


@contextmanager
def joined(root: Path, *names: str, **sections: Any) -> Iterator[tuple[Federation, Lan]]:
    """Running daemons that see each other alive."""
    with (
        lan(*names) as net,
        federation(root, names, addresses=net.addresses, prefixes=net.prefixes, **sections) as f,
    ):
        for name in names:
            f[name].start()
        f.until("all see each other", lambda: all_alive(f, *names))
        yield f, net


def all_alive(f: Federation, *names: str) -> bool:
    return all(f.sees(a, b, "alive") for a in names for b in names if a != b)


def watch(f: Federation, for_s: float) -> None:
    """Let the daemons run for so long; none may end."""
    end = time.monotonic() + for_s
    f.until("the time is over", lambda: time.monotonic() >= end, for_s + 60)


def told(f: Federation, *names: str) -> Counter[str]:
    """How often each event is in the logs of these sites."""
    return Counter(e["event"] for name in names for e in f[name].events())


def seconds_until(f: Federation, what: str, condition: Callable[[], object], at_most_s: float) -> float:
    begin = time.monotonic()
    f.until(what, condition, at_most_s)
    return time.monotonic() - begin


@pytest.mark.faults
def test_thirty_percent_loss_accuses_nobody_falsely_and_models_get_through(
    tmp_path: Path, seen: Callable[[str], None]
) -> None:
    sections = {"membership": {"preset": "wan"}, "network": {"width": 2}}
    with joined(tmp_path, "north", "south", **sections) as (f, net):
        for name in f.sites:
            net.lose(name, 30)
        begin = time.monotonic()
        for name in f.sites:
            f.until(f"{name} took a model in", lambda name=name: f[name].events("visit_merged"), 300)
        watch(f, max(0.0, 60 - (time.monotonic() - begin)))
        lasted_s, counts = time.monotonic() - begin, told(f, *f.sites)
        assert counts["member_dead"] == 0 and counts["model_broken"] == 0, counts
        f.until("all see each other", lambda: all_alive(f, *f.sites))
        seen(f"in {lasted_s:.0f} s: {counts['member_suspect']} suspicions, no death, "
             f"{counts['model_arrived']} models whole, none broken")  # fmt: skip


@pytest.mark.faults
def test_a_one_way_cut_between_two_sites_kills_neither(tmp_path: Path, seen: Callable[[str], None]) -> None:
    with joined(tmp_path, *TRIO, membership=QUICK) as (f, net):
        before = told(f, *TRIO)["member_dead"]
        assert net.reaches("north", "south")
        net.deafen("south", "north")
        assert not net.reaches("north", "south") and net.reaches("north", "east")
        watch(f, 20)
        deaths = told(f, *TRIO)["member_dead"] - before
        assert deaths == 0, "the third site reaches both, and says so"
        suspicions = told(f, *TRIO)["member_suspect"]
        net.heal("south")
        healed_s = seconds_until(f, "healed", lambda: all_alive(f, *TRIO), 30)
        seen(f"20 s: {suspicions} suspicions, no death; all alive {healed_s:.1f} s after healing")


@pytest.mark.faults
def test_a_site_that_hears_nothing_is_found_and_comes_back(
    tmp_path: Path, seen: Callable[[str], None]
) -> None:
    with joined(tmp_path, *TRIO, membership=QUICK) as (f, net):
        net.deafen("south")
        others = ("north", "east")
        gone_s = seconds_until(f, "dead", lambda: all(f.sees(o, "south", "dead") for o in others), 30)
        assert all_alive(f, *others)
        alone_s = seconds_until(f, "it knows", lambda: all(f.sees("south", o, "dead") for o in others), 30)
        net.heal("south")
        healed_s = seconds_until(f, "healed", lambda: all_alive(f, *TRIO), 60)
        seen(f"others see it dead after {gone_s:.1f} s, it sees them dead {alone_s:.1f} s later; "
             f"all alive {healed_s:.1f} s after healing")  # fmt: skip


@pytest.mark.faults
def test_a_flapping_link_settles(tmp_path: Path, seen: Callable[[str], None]) -> None:
    with joined(tmp_path, *TRIO, membership=QUICK) as (f, net):
        for flap in range(20):
            net.link("south", up=bool(flap % 2))
            watch(f, 1.5)
        healed_s = seconds_until(f, "settled", lambda: all_alive(f, *TRIO), 60)
        counts = told(f, *TRIO)
        assert counts["internal_error"] == counts["dropped_event"] == 0, counts
        # A flap can cost each pair one suspicion, one death and one return at most.
        assert counts["member_dead"] <= 10 * 4
        watch(f, 10)
        after = told(f, *TRIO)
        assert after["member_suspect"] == counts["member_suspect"], "it does not go on once the link is up"
        seen(f"10 outages of 1.5 s: {counts['member_suspect']} suspicions, {counts['member_dead']} deaths; "
             f"all alive after {healed_s:.1f} s, none in the 10 s after")  # fmt: skip


@pytest.mark.faults
def test_a_slow_transfer_is_resumed_across_a_restart_of_its_receiver(
    tmp_path: Path, seen: Callable[[str], None]
) -> None:
    sections: dict[str, Any] = {
        "algorithm": {"name": "fedavg"},
        "network": {"width": 12},
        "membership": {"preset": "lan", "probe_timeout_s": 1.0},
    }
    with joined(tmp_path, "north", "south", **sections) as (f, net):
        f.until("a round is led", lambda: any(f[n].events("round_led") for n in f.sites))
        sender = next(n for n in f.sites if f[n].events("round_led"))
        receiver = next(n for n in f.sites if n != sender)
        net.slow(sender, 800)  # the updates come in fast, the global model goes out slowly
        part = half_of_a_model(f, receiver)
        f[receiver].end(signal.SIGKILL)
        kept, name = part.stat().st_size, part.name.split(".")[0]
        out_before = bytes_out(f, sender, receiver)
        f[receiver].start()
        stored = f[receiver].folder / "state" / "models" / f"{name}.safetensors"
        took_s = seconds_until(f, "the model is whole", stored.exists, 180)
        size, again = stored.stat().st_size, bytes_out(f, sender, receiver) - out_before
        assert kept > size // 4
        assert again < size - kept + 0.25 * size, "what had come was sent again"
        seen(f"{kept / 1e6:.2f} of {size / 1e6:.2f} MB were kept, {again / 1e6:.2f} MB sent afterwards, "
             f"whole after {took_s:.0f} s")  # fmt: skip


def half_of_a_model(f: Federation, receiver: str) -> Path:
    """The file of a model of which more than 1 MiB has come to this site."""
    folder, found = f[receiver].folder / "state" / "models" / "partial", []

    def half() -> bool:
        found.extend(p for p in folder.glob("*") if p.stat().st_size > 1 << 20)
        return bool(found)

    f.until("a model is half received", half)
    return found[0]


def bytes_out(f: Federation, sender: str, receiver: str) -> int:
    row = f[sender].peer(receiver)
    assert row is not None
    return row.bytes_out
