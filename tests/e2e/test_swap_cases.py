"""Real daemons that swap, beside the plain case: a late joiner, a one-way line, log2, a worker killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.federation import Federation, Site, federation, free_ports
from tests.e2e.test_swaps import (
    APART,
    LONG,
    STILL,
    agree,
    applied,
    assert_the_mean,
    newest,
    start_apart,
    told,
    weights,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
LOG2 = {
    **STILL,
    "gossip": {**STILL["gossip"], "swaps_per_round": "log2"},
    "exchange_at": {"every_rounds": 2},
}


def parts(site: Site) -> list[str]:
    """What the swaps that it has applied did here."""
    return [e["reason"] for e in told(site, "swap_applied")]


def nothing_is_lost(f: Federation) -> bool:
    return not any(told(site, "swap_lost", "swap_in_doubt") for site in f.sites.values())


def steps_of(site: Site) -> int:
    """Steps behind the shared model of the newest checkpoint."""
    document: dict[str, Any] = torch.load(newest(site), weights_only=True)
    return int(document["steps"])


def test_a_late_joiner_copies_a_model_once_and_then_mixes(tmp_path: Path) -> None:
    with federation(tmp_path, ["north", "south", "west"], **STILL) as f:
        start_apart(f)
        for name in ("north", "south"):
            f[name].start()
        f.until("the first two have swapped", lambda: len(applied(f["north"])) >= 2)
        f["west"].start()
        f.until("west has mixed", lambda: "mix" in parts(f["west"]))
        assert parts(f["west"])[0] == "copy" and parts(f["west"]).count("copy") == 1
        copied = applied(f["west"])[0]
        givers = [site for site in (f["north"], f["south"]) if copied in applied(site)]
        assert [parts(site)[applied(site).index(copied)] for site in givers] == ["keep"]
        assert nothing_is_lost(f)
        assert [site.end() for site in f.sites.values()] == [0, 0, 0]
        assert steps_of(f["west"]) >= LONG, "its rounds are those of the model that it took over"


def test_a_site_that_cannot_be_dialled_is_met_one_way(tmp_path: Path) -> None:
    """South is listed under a port where nobody listens. It calls in, and north mixes what it gives."""
    with federation(tmp_path, ["north", "south"], **STILL) as f:
        initial = start_apart(f)
        f["south"].edit(listen=f["south"].address)
        nobody = f"127.0.0.1:{free_ports(1)[0]}"

        def elsewhere(document: dict[str, Any]) -> None:
            (south,) = [site for site in document["sites"] if site["name"] == "south"]
            south["address"] = nobody

        f.edit(elsewhere)
        for site in f.sites.values():
            site.start()
        f.until("north has mixed", lambda: "mix" in parts(f["north"]))
        f.until("south knows of it", lambda: "keep" in parts(f["south"]))
        assert set(parts(f["north"])) == {"mix"} and set(parts(f["south"])) == {"keep"}
        weight = {(e["asker"], e["number"]): e["weight"] for e in told(f["north"], "swap_opened")}
        assert {weight[swap] for swap in applied(f["north"])} == {0.5}, "by cases it would be more"

        def concerns() -> set[str]:
            status = f["north"].status()
            return {c.code for c in status.concerns} if status is not None else set()

        f.until("status says so", lambda: "calls_in_only" in concerns())
        assert nothing_is_lost(f)
        assert [site.end() for site in f.sites.values()] == [0, 0]
        assert float((weights(f["south"]) - initial).mean()) == pytest.approx(APART, rel=0.01)
        assert float((weights(f["north"]) - initial).mean()) > 0.2 * APART


def test_four_sites_swap_along_a_hypercube_at_every_other_round(tmp_path: Path) -> None:
    with federation(tmp_path, ["east", "north", "south", "west"], **LOG2) as f:
        for site in f.sites.values():
            site.start()
        f.until(
            "each has swapped with two others",
            lambda: all(len({e["site"] for e in told(s, "swap_applied")}) >= 2 for s in f.sites.values()),
        )
        f.until("each has swapped four times", lambda: all(len(applied(s)) >= 4 for s in f.sites.values()))
        for site in f.sites.values():
            made, status = len(applied(site)), site.status()
            # two stages at each exchange
            assert status is not None and made <= 2 * (status.round // 2 + 1)
        assert nothing_is_lost(f)
        names = [applied(site) for site in f.sites.values()]
        assert all(len(found) == len(set(found)) for found in names), "a swap was applied twice"
        assert all(sum(swap in found for found in names) <= 2 for swap in set().union(*names))
        assert [site.end() for site in f.sites.values()] == [0, 0, 0, 0]


def test_a_worker_killed_alone_within_swaps_applies_each_once(tmp_path: Path) -> None:
    """kill -9 of the training process, as soon as a swap is open, and as soon as one is decided."""
    with federation(tmp_path, ["north", "south"], **STILL) as f:
        initial = start_apart(f)
        for site in f.sites.values():
            site.start()
        for name, event in (("north", "swap_opened"), ("south", "swap_committed")):
            worker_killed_at(f, f[name], event)
        at = len(applied(f["north"])), len(applied(f["south"]))
        f.until(
            "they swap again", lambda: len(applied(f["north"])) > at[0] and len(applied(f["south"])) > at[1]
        )
        f.until("what is open is ended at both", lambda: agree(f))
        for site in f.sites.values():
            assert len(applied(site)) == len(set(applied(site))), "a swap was applied twice"
        assert nothing_is_lost(f)
        assert [site.end() for site in f.sites.values()] == [0, 0]
        assert_the_mean(f, initial)


def worker_killed_at(f: Federation, site: Site, event: str) -> None:
    """Kill the worker once the event is in the log; the daemon goes on and starts another one."""
    daemon, before = site.pid, len(told(site, event))
    f.until(f"{site.name}: {event}", lambda: len(told(site, event)) > before)
    status, ready = site.status(), len(told(site, "worker_ready"))
    assert status is not None and status.worker.pid is not None
    os.kill(status.worker.pid, signal.SIGKILL)
    f.until(f"{site.name}'s worker is back", lambda: len(told(site, "worker_ready")) > ready)
    assert site.pid == daemon, "its daemon went on"
