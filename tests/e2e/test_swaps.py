"""Real daemons that swap: both sites have the mean, and a killed one applies each swap once or not at all."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.store import Checkpoints, read_events
from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import ExchangesDoc
from tests.e2e.federation import Federation, Site, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SETTINGS: dict[str, Any] = {
    "algorithm": {"name": "gossip_average"},
    "training": {"steps_per_round": 6, "batch_size": 2, "learning_rate": 0.002, "personal": "none"},
    "gossip": {
        "exchange": "swap",
        "warmup_rounds": 0,
        "offer_timeout_s": 3.0,
        "doubt_timeout_s": 120.0,
    },
}


@contextmanager
def swapping(root: Path, **changes: Any) -> Iterator[Federation]:
    """north and south, started."""
    with federation(root, ["north", "south"], **{**SETTINGS, **changes}) as f:
        for site in f.sites.values():
            site.start()
        yield f


def exchanges(site: Site) -> ExchangesDoc:
    with ControlClient(site.socket) as client:
        return client.exchanges(0)


def told(site: Site, *names: str) -> list[Mapping[str, Any]]:
    """These events, from the file: nobody answers while the daemon is dead."""
    log = read_events(site.folder / "state" / "events.jsonl", 100_000)
    return [e for e in log if e["event"] in names]


def applied(site: Site) -> list[tuple[str, int]]:
    """Each swap that the site has applied, by its name."""
    return [(e["asker"], e["number"]) for e in told(site, "swap_applied")]


def weights(site: Site) -> dict[str, torch.Tensor]:
    """The shared model in the newest checkpoint."""
    path = Checkpoints(site.folder / "state" / "checkpoint").newest()[0]
    state: dict[str, Any] = torch.load(path, weights_only=True)
    found: dict[str, torch.Tensor] = state["model"]
    return found


def phase(site: Site) -> str:
    status = site.status()
    return status.phase if status else ""


def test_two_sites_that_swap_both_have_the_mean(tmp_path: Path) -> None:
    """At a learning rate of almost nothing the sites stay where a swap has put them."""
    training = {**SETTINGS["training"], "learning_rate": 1e-3}
    with swapping(tmp_path, training=training, site={"rounds": 6}) as f:
        for site in f.sites.values():
            f.until(f"{site.name} finished", lambda site=site: phase(site) == "finished")
        north, south = f["north"], f["south"]
        both = set(applied(north)) & set(applied(south))
        assert len(both) >= 3, (applied(north), applied(south))
        assert not told(north, "swap_lost", "swap_in_doubt") and not told(south, "swap_lost", "swap_in_doubt")
        assert len(applied(north)) == len(set(applied(north))) and set(applied(north)) == both
        for site in f.sites.values():
            status, document = site.status(), exchanges(site)
            assert status is not None and status.state == "ok", status
            assert status.swaps.mixed == status.accepted == len(both)
            rows = {(r.asker, r.number): r for r in document.swaps}
            assert {rows[swap].state for swap in both} == {"applied"}
            assert {rows[swap].part for swap in both} == {"mix"}
            states = {(r.direction, r.state) for r in document.exchanges}
            assert {("in", "merged"), ("out", "sent")} <= states, states
        parts = [
            {(e["asker"], e["number"]): e["weight"] for e in told(site, "swap_opened")}
            for site in (north, south)
        ]
        for swap in both:
            assert parts[0][swap] + parts[1][swap] == pytest.approx(1.0)


def test_a_site_killed_within_swaps_applies_each_once_or_not_at_all(tmp_path: Path) -> None:
    """The asker, the asked, their workers: killed as soon as a swap is open, committed, or in doubt."""
    with swapping(tmp_path) as f:
        f.until("they swap", lambda: all(applied(site) for site in f.sites.values()))
        for name, event in (("north", "swap_opened"), ("south", "swap_committed"), ("south", "swap_opened")):
            killed_at(f, f[name], event)
        at = len(applied(f["north"])), len(applied(f["south"]))
        f.until(
            "they swap again", lambda: len(applied(f["north"])) > at[0] and len(applied(f["south"])) > at[1]
        )
        f.until("what is open is ended at both", lambda: agree(f))
        north, south = applied(f["north"]), applied(f["south"])
        assert len(north) == len(set(north)) and len(south) == len(set(south)), "a swap was applied twice"
        assert not any(told(site, "swap_lost", "swap_in_doubt") for site in f.sites.values())


def killed_at(f: Federation, site: Site, event: str) -> None:
    """kill -9 as soon as the event is in the site's log; then it comes back."""
    before = len(told(site, event))
    f.until(f"{site.name}: {event}", lambda: len(told(site, event)) > before)
    site.end(signal.SIGKILL)
    time.sleep(1.0)
    site.start()
    ready = len(told(site, "worker_ready"))
    f.until(f"{site.name}'s worker is back", lambda: len(told(site, "worker_ready")) > ready)


def agree(f: Federation) -> bool:
    """No swap is open, and both sites have applied the same ones."""
    found = [site.status() for site in f.sites.values()]
    over = all(s is not None and not s.swap.state for s in found)
    return over and set(applied(f["north"])) == set(applied(f["south"]))
