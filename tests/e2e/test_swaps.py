"""Real daemons that swap: both sites have the mean, and a killed one applies each swap once or not at all."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.learn.engine.checkpoint import digest
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
STILL = {**SETTINGS, "training": {**SETTINGS["training"], "learning_rate": 1e-9}}
APART = 0.1
"""What is added to every weight of south before it begins."""
LONG = 100_000
"""Steps behind both, so that neither is young beside the other, whichever worker is up first."""


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


def newest(site: Site) -> Path:
    """The newest checkpoint."""
    return Checkpoints(site.folder / "state" / "checkpoint").newest()[0]


def weights(site: Site) -> torch.Tensor:
    """The convolutions of the shared model in the newest checkpoint, in one row."""
    model: dict[str, torch.Tensor] = torch.load(newest(site), weights_only=True)["model"]
    return torch.cat([t.flatten() for _, t in sorted(model.items()) if t.dim() > 1])


def start_apart(f: Federation) -> torch.Tensor:
    """Let north and south train one round alone; then move south's model by APART. Returns W_0."""
    both = (f["north"], f["south"])
    for site in both:
        site.start("--rounds", "1")  # nobody swaps after its last round
    f.until("both have done a round", lambda: all(phase(site) == "finished" for site in both))
    assert [site.end() for site in both] == [0, 0]
    assert not any(told(site, "swap_asked") for site in both)
    assert torch.allclose(weights(f["north"]), weights(f["south"]), atol=1e-6), "another W_0"
    for name, distance in (("north", 0.0), ("south", APART)):
        path = newest(f[name])
        document: dict[str, Any] = torch.load(path, weights_only=True)
        document["steps"] = document["history"]["steps"] = document["history"]["own_steps"] = LONG
        for tensor in document["model"].values():
            if tensor.dim() > 1:
                tensor += distance
        document["digest"] = digest({k: v for k, v in document.items() if k != "digest"})
        torch.save(document, path)
    return weights(f["north"])


def assert_the_mean(f: Federation, initial: torch.Tensor) -> None:
    """Both sites stand at W_0 + APART·m_south/(m_north + m_south)."""
    north, south = f["north"], f["south"]
    cases = {site.name: told(site, "worker_ready")[0]["cases"] for site in f.sites.values()}
    assert cases["north"] != cases["south"], "equal cases would not show a weighted mean"
    share = APART * cases["south"] / sum(cases.values())
    moved = [float((weights(site) - initial).mean()) for site in (north, south)]
    assert moved == pytest.approx([share, share], abs=0.01 * APART)
    assert float((weights(north) - weights(south)).abs().max()) < 0.01 * APART


def phase(site: Site) -> str:
    status = site.status()
    return status.phase if status else ""


def test_two_sites_that_swap_both_have_the_mean(tmp_path: Path) -> None:
    """South starts away from north, and both all but stand still: only swaps can bring them together."""
    with federation(tmp_path, ["north", "south"], **STILL) as f:
        initial = start_apart(f)
        for site in f.sites.values():
            site.start()
        f.until("they have swapped", lambda: len(applied(f["north"])) >= 3 and agree(f))
        north, south = f["north"], f["south"]
        ours = applied(north)  # both go on
        both = set(ours) & set(applied(south))
        assert len(both) >= 3 and len(ours) == len(set(ours)), (ours, applied(south))
        assert not told(north, "swap_lost", "swap_in_doubt") and not told(south, "swap_lost", "swap_in_doubt")
        for site in f.sites.values():
            f.until(f"{site.name} is well", lambda site=site: f.well(site.name))
            status, document = site.status(), exchanges(site)
            assert status is not None
            assert status.swaps.mixed == status.accepted >= len(both)
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
        assert [site.end() for site in f.sites.values()] == [0, 0]
        assert_the_mean(f, initial)


def test_a_site_killed_within_swaps_applies_each_once_or_not_at_all(tmp_path: Path) -> None:
    """The asker, the asked, their workers: killed as soon as a swap is open, committed, or in doubt."""
    with federation(tmp_path, ["north", "south"], **STILL) as f:
        initial = start_apart(f)
        for site in f.sites.values():
            site.start()
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
        assert [site.end() for site in f.sites.values()] == [0, 0]
        assert_the_mean(f, initial)


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
