"""The one end-to-end run of `make test`; all others are marked e2e and run in `make test-all`."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.federation import federation


def test_two_sites_meet_train_learn_from_each_other_and_stop(tmp_path: Path) -> None:
    with federation(tmp_path, ["north", "south"]) as f:
        for site in f.sites.values():
            site.start()
        for name, other in (("north", "south"), ("south", "north")):
            f.until(f"{name} sees {other}", lambda a=name, b=other: f.sees(a, b, "alive"))
            f.until(f"{name} took a model in", lambda name=name: f[name].events("visit_merged"))
            assert {e["site"] for e in f[name].events("visit_merged")} == {other}
            f.until_round(name, 2)
            status = f[name].status()
            assert status is not None and status.accepted >= 1, status
        assert {name: site.end() for name, site in f.sites.items()} == {"north": 0, "south": 0}
