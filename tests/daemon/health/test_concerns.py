"""What looks at other sites come to in status and metrics."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.daemon.health import concerns
from gossipseg.daemon.health.reachability import Found
from gossipseg.daemon.observe.metrics import sample
from gossipseg.wire.listen_address import ListenFault
from gossipseg.wire.reached import Reached
from tests.core.rig import TRAINING, alive
from tests.daemon.harness import daemon_of, service
from tests.daemon.health.world import OK, REFUSED, World
from tests.e2e.federation import Federation


def meets_south(daemon: Any) -> None:
    r = daemon.runtime
    r.inject(ev.Start())
    r.inject(ev.Incoming("south", 1, ms.Ping((alive("south"),), TRAINING)))
    assert r.node.members["south"].live


FAULT = ListenFault("listen is hosta:7443: hosta, which is 127.0.1.1", "Write listen: 0.0.0.0:7443.", True)


async def test_a_peer_that_never_came_is_a_reason_and_a_metric(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_of(files)
    r, asked = daemon.runtime, service(daemon.runtime)
    r.inject(ev.Start())
    status = await asked.status()
    assert (status.state, status.concerns) == ("ok", ())
    later = time.monotonic() + r.node.grace_s + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    r.reaching.found["south"] = Found(Reached("timeout", "10.0.0.2:7443"), Reached("not_asked"), later, 1)
    status = await asked.status()
    (concern,) = status.concerns
    assert status.state == "degraded" and concern.code == "never_seen" and concern.site == "south"
    assert "10.0.0.2:7443: no answer to the connection: a firewall" in concern.text
    assert "open its port" in concern.remedy and concern.remedy[:-1] in status.reasons[0]
    shown = {tuple(s.labels.values()): s.value for m in sample(r, later, degraded=True) for s in m.samples
             if s.name == "gossipseg_concern"}  # fmt: skip
    assert shown["never_seen",] == 1 and shown["path_mtu",] == 0
    assert {code for (code,) in shown} == set(concerns.REMEDIES)
    await r.transport.close()


@pytest.mark.parametrize(
    ("out", "back", "fault", "codes", "words"),
    [
        (OK, OK, None, [], ""),
        (
            OK,
            REFUSED,
            None,
            ["cannot_be_reached"],
            "cannot reach this site at a:1: the connection was refused",
        ),
        (OK, replace(REFUSED, works_at="a:2"), None, [], ""),
        (OK, REFUSED, FAULT, ["cannot_be_reached"], "Write listen: 0.0.0.0:7443"),
        (
            OK,
            Reached("untrusted", "a:1", "it shows subject is 'CN=proxy'"),
            None,
            ["cannot_be_reached"],
            "CN=proxy",
        ),
        (OK, Reached("mute", "a:1"), None, ["cannot_be_reached"], "full-size packets are lost"),
        (OK, Reached("not_asked"), FAULT, ["wrong_listen"], "127.0.1.1"),
        (OK, OK, FAULT, [], ""),
        (Reached("stalled", "b:1"), OK, None, ["path_mtu"], "MTU"),
        (OK, Reached("stalled", "a:1"), None, ["path_mtu"], "where it dials this site"),
        (OK, Reached("older"), None, [], ""),
    ],
)
async def test_what_the_looks_come_to(
    files: Federation, out: Reached, back: Reached, fault: ListenFault | None, codes: list[str], words: str
) -> None:
    daemon = daemon_of(files)
    meets_south(daemon)
    r = daemon.runtime
    r.reaching.found["south"], r.reaching.listen_fault = Found(out, back, 0.0), fault
    status = await service(daemon.runtime).status()
    assert [c.code for c in status.concerns] == codes
    assert words in " ".join(status.reasons) and bool(status.reasons) == bool(codes)
    rows = concerns.reach_rows("south", r.reaching.found["south"], fault)
    assert [row.direction for row in rows] == ["out", "in"]
    await r.transport.close()


async def test_an_operator_asks_for_a_call_back(files: Federation) -> None:
    daemon = daemon_of(files)
    meets_south(daemon)
    world = World(back=replace(REFUSED, works_at="a:2"))
    daemon.runtime.reaching._dialler = world
    rows = (await service(daemon.runtime).reach()).rows
    assert [(row.site, row.direction, row.outcome, row.good) for row in rows] == [
        ("south", "out", "ok", True),
        ("south", "in", "refused", False),
    ]
    assert "at a:2 its calls get through" in rows[1].text and "List a:2" in rows[1].remedy
    await daemon.runtime.transport.close()
