"""Transfers between real daemons: hours of the day, and what an operator sees of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import ExchangeRow
from tests.e2e.federation import Site, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.faults]


def sent_rows(site: Site) -> list[ExchangeRow]:
    if site.status() is None:
        return []
    with ControlClient(site.socket) as client:
        return [row for row in client.exchanges(0).exchanges if row.direction == "out"]


def test_outside_its_window_a_site_sends_nothing_takes_models_and_stays_alive(
    tmp_path: Path, seen: Callable[[str], None]
) -> None:
    hour = (time.localtime().tm_hour + 3) % 24
    window = f"{hour:02d}:00-{(hour + 1) % 24:02d}:00"
    with federation(tmp_path, ["north", "south"]) as f:
        f["north"].edit(transfers={"windows": [window]})
        for site in f.sites.values():
            site.start()
        f.until("a model waits", lambda: any(r.state == "waiting" for r in sent_rows(f["north"])))
        waiting = next(r for r in sent_rows(f["north"]) if r.state == "waiting")
        assert waiting.reason == f"waits for the window until {hour:02d}:00"
        f.until("north takes models in", lambda: f["north"].events("visit_merged"))
        status = f["north"].status()
        assert status is not None and status.sent == 0 and status.bytes_out < status.bytes_in
        assert f.sees("south", "north", "alive"), "pings do not wait"
        seen(f"0 models out, {status.received} in; exchanges says: {waiting.reason!r}")
        assert f["north"].end() == 0


def test_the_cap_holds_between_real_daemons(tmp_path: Path, seen: Callable[[str], None]) -> None:
    rate = 100_000
    with federation(tmp_path, ["north", "south"]) as f:
        f["north"].edit(transfers={"max_bytes_per_s": rate})
        for site in f.sites.values():
            site.start()
        f.until("north sends", lambda: any(r.state == "sending" for r in sent_rows(f["north"])))
        begin, before = time.monotonic(), bytes_out(f["north"])
        f.until("four models went", lambda: (s := f["north"].status()) is not None and s.sent >= 4)
        took_s, went = time.monotonic() - begin, bytes_out(f["north"]) - before
        assert went / took_s < 1.15 * rate + 20_000  # pings and records are beside it
        assert f.sees("south", "north", "alive") and not f["south"].events("member_dead")
        seen(f"{went / took_s / 1e3:.0f} kB/s with a cap of {rate / 1e3:.0f} kB/s; nobody suspected dead")


def bytes_out(site: Site) -> int:
    row = site.peer("south")
    assert row is not None
    return row.bytes_out
