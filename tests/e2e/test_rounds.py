"""Real daemons under a rotating coordinator: rounds close, survive their coordinator's death and a site whose
updates are bad, and heal."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from gossipseg.errors import DaemonUnreachable, LocalError
from gossipseg.store.auditlog import AUDIT_FILE, parse_line
from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import RoundsDoc
from tests.e2e.federation import Federation, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NAMES = ("east", "north", "south")
ROUNDS = {"deadline_s": 4, "patience_s": 4, "alone_after_s": 600, "poll_interval_s": 0.2}
TAKEOVER_S = 60.0
"""Far more than the death of a coordinator may cost: a suspicion, or its patience, and a round's rest."""


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


def closed(f: Federation, name: str) -> dict[int, dict[str, Any]]:
    """Round → what the site's log says of its closing: `site` is its coordinator."""
    return {e["round"]: dict(e) for e in f[name].events("round_committed")}


@dataclass(frozen=True, slots=True)
class Led:
    """What a coordinator said of its attempt in the moment before it was killed."""

    site: str
    round: int
    attempt: int
    stage: str


def kill_who_leads(f: Federation) -> Led:
    """kill -9 the first daemon that says over its own socket that it leads a round, which is then not closed
    as far as it knows."""
    killed: list[Led] = []

    def caught() -> bool:
        for name in NAMES:
            try:
                doc = rounds_of(f, name)
            except (DaemonUnreachable, LocalError):
                continue  # it starts, or is busy
            if doc.leading and doc.committed < doc.round:
                f[name].send(signal.SIGKILL)
                assert doc.attempt is not None and doc.coordinator == name, doc
                killed.append(Led(name, doc.round, doc.attempt, doc.state))
                return True
        return False

    f.until("somebody says that it leads", caught)
    assert f[killed[0].site].end(signal.SIGKILL) == -signal.SIGKILL
    return killed[0]


def kill_amid_a_round(f: Federation, tries: int = 5) -> tuple[Led, list[dict[str, Any]]]:
    """(who was killed in the middle of what, how that very round was closed at each of the others).

    A round whose closing was on its way to the others when its coordinator was killed says nothing: then it
    is tried again, with whoever leads after all three are together again.
    """
    for _ in range(tries):
        led = kill_who_leads(f)
        alive = [name for name in NAMES if name != led.site]
        for name in alive:
            f.until(
                f"{name} closes the round of {led}",
                lambda name=name, number=led.round: number in closed(f, name),
                patience_s=TAKEOVER_S,
            )
        how = [closed(f, name)[led.round] for name in alive]
        if all((e["site"], e["attempt"]) != (led.site, led.attempt) for e in how):
            return led, how
        f[led.site].start()
        f.until("all contribute again", lambda name=alive[0], r=led.round: _whole(f, name, after=r))
    raise AssertionError(f"in {tries} tries every round was decided in the instant of the kill")


def test_a_round_closes_under_the_next_coordinator_when_the_first_is_killed_in_its_middle(
    tmp_path: Path,
) -> None:
    """kill -9 between the coordinator's first word of a round and its end; later it catches up."""
    with federation(tmp_path, NAMES, algorithm={"name": "fedavg"}, rounds=ROUNDS) as f:
        for name in NAMES:
            f[name].start()
        for name in NAMES:
            f.until(f"{name} has a global model", lambda name=name: committed(f, name) >= 2)

        f.until("its file is listed as what it is", lambda: "common" in kinds(f, "north"))

        led, how = kill_amid_a_round(f)
        victim, alive = led.site, [name for name in NAMES if name != led.site]
        for e in how:
            assert e["attempt"] > led.attempt and e["site"] in alive, (led, how)
            assert e["site"] == NAMES[(led.round + e["attempt"]) % 3], "it was not the next one's turn"
            # (Its update is in it where another had already stored the model that it made.)
            assert victim in e["contributors"] or e["absent"].get(victim), (led, how)
        assert len({(e["hash"], e["attempt"], e["site"]) for e in how}) == 1, how

        def names_the_dead() -> bool:
            return victim in [row.site for row in rounds_of(f, alive[0]).absent]

        f.until("a round is closed without the dead one", names_the_dead)
        last = rounds_of(f, alive[0])
        assert last.absent[0].reason, "closed without a site, and nobody says why"
        status = f[alive[0]].status()
        assert status is not None and status.state == "degraded"
        assert any(f"was closed without {victim}" in reason for reason in status.reasons), status.reasons

        f[victim].start()
        f.until("the killed one contributes again", lambda: _whole(f, alive[0]))
        f.until("the killed one knows of it", lambda: committed(f, victim) >= committed(f, alive[0]) - 1)

        logs = [closed(f, name) for name in NAMES]
        everybodys = set.intersection(*(set(log) for log in logs))
        assert everybodys
        for number in everybodys:
            hashes = {log[number]["hash"] for log in logs}
            assert len(hashes) == 1, f"two global models for round {number}: {hashes}"
        assert {f[name].end() for name in NAMES} == {0}


def _whole(f: Federation, name: str, after: int = 0) -> bool:
    """The newest round that the site knows to be closed is a later one, of everybody's updates."""
    last = rounds_of(f, name)
    return last.committed > after and not last.absent


_BAD_UPDATES = """
import os, sys
if "gossipseg.learn.worker" in sys.orig_argv:
    from gossipseg.lab.simulation.adversary import spoiler
    from gossipseg.learn.training import round_end as closing

    honest, spoil = closing.export_wire, spoiler("nan", 0)

    def export_wire(path, *more):
        honest(path, *more)
        if os.path.exists({flag!r}):
            spoil(path)

    closing.export_wire = export_wire
"""


def sends_bad_updates(folder: Path) -> tuple[dict[str, str], Path]:
    """(The environment of a site that does so while a file is there, that file.)

    Its worker writes NaN into each update that it has trained; all else about it is as it should be.
    """
    folder.mkdir()
    flag = folder / "bad"
    flag.touch()
    (folder / "sitecustomize.py").write_text(_BAD_UPDATES.format(flag=str(flag)))
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(Path(__file__).parents[2])))}, flag


def audited(f: Federation, name: str, event: str) -> list[dict[str, Any]]:
    """Lines of that name in the site's audit log."""
    written = (f[name].folder / "state" / "audit" / AUDIT_FILE).read_bytes().splitlines()
    return [line for line in map(parse_line, written) if line is not None and line["event"] == event]


def test_a_site_whose_update_is_refused_stays_in_the_federation_and_sees_why(tmp_path: Path) -> None:
    """south's updates hold NaN until it is repaired: the rounds are closed without it, it goes on from the
    global models, says so to its own administrator, and contributes again."""
    patient = {"quarantine": {"offences": 1000}}  # another story
    with federation(tmp_path, NAMES, algorithm={"name": "fedavg"}, rounds=ROUNDS, site=patient) as f:
        f["south"].env, flag = sends_bad_updates(tmp_path / "south-is-bad")
        for name in NAMES:
            f[name].start()

        def told_by_others() -> list[dict[str, Any]]:
            told = [dict(e) for e in f["south"].events("update_refused")]
            return [e for e in told if e["site"] != "south"]  # in its own turns it refuses itself

        f.until("another site has refused its update", told_by_others)
        for name in NAMES:
            f.until(f"{name} goes on", lambda name=name: committed(f, name) >= 3)
        assert {e["reason"] for e in told_by_others()} == {"not_finite"}
        for name in NAMES:
            assert "south" not in {site for e in closed(f, name).values() for site in e["contributors"]}
        for e in told_by_others():
            assert closed(f, e["site"])[e["round"]]["absent"]["south"] == "refused_not_finite", e

        def says_why() -> bool:
            status = f["south"].status()
            text = "was closed without south (refused_not_finite)"
            return status is not None and status.state == "degraded" and text in "; ".join(status.reasons)

        f.until("its status says why", says_why)
        for name in ("east", "north"):
            f.until(f"{name} holds it for a member", lambda name=name: f.sees(name, "south", "alive"))
        f.until("its audit log has it", lambda: audited(f, "south", "update_left_out"))
        assert {line["reason"] for line in audited(f, "south", "update_left_out")} == {"not_finite"}
        f.until("it trains on from a global model", lambda: audited(f, "south", "model_merged"))

        flag.unlink()
        f.until("the repaired one contributes", lambda: _whole(f, "south"))
        assert {f[name].end() for name in NAMES} == {0}


def test_sites_finish_their_budget_and_private_parts_stay(tmp_path: Path) -> None:
    """FedBN to the last round: all end, and no file that was ever exchanged holds a normalisation layer."""
    with federation(tmp_path, NAMES, algorithm={"name": "fedbn"}, rounds=ROUNDS, site={"rounds": 3}) as f:
        for name in NAMES:
            f[name].start()
        for name in NAMES:
            f.until_round(name, 3)
            f.until(f"{name} has finished", lambda name=name: bool(f[name].events("finished")))
        assert {committed(f, name) for name in NAMES} == {3}, "the global model of the last round is kept"
        models = [p for name in NAMES for p in (f[name].folder / "state" / "models").glob("*.safetensors")]
        assert models
        for path in models:
            with safe_open(path, framework="np") as file:
                assert not [n for n in file.keys() if "norm" in n], path  # noqa: SIM118
        assert {f[name].end() for name in NAMES} == {0}
