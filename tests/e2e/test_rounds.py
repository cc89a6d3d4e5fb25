"""Real daemons under a rotating coordinator: rounds close, survive their coordinator's death, and heal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import RoundsDoc
from tests.e2e.federation import Federation, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NAMES = ("east", "north", "south")
ROUNDS = {"deadline_s": 4, "patience_s": 4, "alone_after_s": 600, "poll_interval_s": 0.2}


def committed(f: Federation, name: str) -> int:
    status = f[name].status()
    return -1 if status is None or status.committed is None else status.committed


def rounds_of(f: Federation, name: str) -> RoundsDoc:
    with ControlClient(f[name].socket) as client:
        return client.rounds()


def kinds(f: Federation, name: str) -> set[str]:
    """What the site's stored models are."""
    with ControlClient(f[name].socket) as client:
        return {row.kind for row in client.models().models}


def closed(f: Federation, name: str) -> dict[int, dict[str, object]]:
    """Round → what the site's log says of its closing."""
    return {e["round"]: dict(e) for e in f[name].events("round_committed")}


def test_a_round_closes_under_the_next_coordinator_when_the_first_is_killed_in_its_middle(
    tmp_path: Path,
) -> None:
    """kill -9 between the coordinator's first word of a round and its end; later it catches up."""
    with federation(tmp_path, NAMES, algorithm={"name": "fedavg"}, rounds=ROUNDS) as f:
        for name in NAMES:
            f[name].start()
        for name in NAMES:
            f.until(f"{name} has a common model", lambda name=name: committed(f, name) >= 2)

        f.until("its file is listed as what it is", lambda: "common" in kinds(f, "north"))

        # The coordinator of (t, 0) is NAMES[t mod 3]: take the next round of which one leads.
        def leads() -> str:
            for name in NAMES:
                led = f[name].events("round_led")
                if led and led[-1]["round"] > max(committed(f, n) for n in NAMES):
                    return name
            return ""

        f.until("somebody leads a round that is not closed yet", leads)
        victim = leads() or NAMES[(committed(f, NAMES[0]) + 1) % 3]
        before = f[victim].events("round_led")[-1]["round"]
        f[victim].end(signal.SIGKILL)
        alive = [name for name in NAMES if name != victim]
        for name in alive:
            f.until(f"{name} closes rounds again", lambda name=name: committed(f, name) > before)
        last = rounds_of(f, alive[0])
        assert victim in [row.site for row in last.absent], last
        assert last.absent[0].reason, "closed without a site, and nobody says why"
        status = f[alive[0]].status()
        assert status is not None and status.state == "degraded"
        assert any(f"was closed without {victim}" in reason for reason in status.reasons), status.reasons

        f[victim].start()
        f.until("the killed one contributes again", lambda: _whole(f, alive[0]))
        f.until("the killed one knows of it", lambda: committed(f, victim) >= committed(f, alive[0]) - 1)

        logs = [closed(f, name) for name in NAMES]
        for number in set.intersection(*(set(log) for log in logs)):
            hashes = {log[number]["hash"] for log in logs}
            assert len(hashes) == 1, f"two common models for round {number}: {hashes}"
        assert {f[name].end() for name in NAMES} == {0}


def _whole(f: Federation, name: str) -> bool:
    last = rounds_of(f, name)
    return last.committed > 0 and not last.absent


def test_sites_finish_their_budget_and_private_parts_stay(tmp_path: Path) -> None:
    """FedBN to the last round: all end, and no file that was ever exchanged holds a normalisation layer."""
    with federation(tmp_path, NAMES, algorithm={"name": "fedbn"}, rounds=ROUNDS, site={"rounds": 3}) as f:
        for name in NAMES:
            f[name].start()
        for name in NAMES:
            f.until_round(name, 3)
            f.until(f"{name} has finished", lambda name=name: bool(f[name].events("finished")))
        assert {committed(f, name) for name in NAMES} == {2}, "nobody would use the common model of the last"
        models = [p for name in NAMES for p in (f[name].folder / "state" / "models").glob("*.safetensors")]
        assert models
        for path in models:
            with safe_open(path, framework="np") as file:
                assert not [n for n in file.keys() if "norm" in n], path  # noqa: SIM118
        assert {f[name].end() for name in NAMES} == {0}
