"""Real daemons over mTLS on loopback: they find each other, train, learn from each other, and survive."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gossipseg.store import read_events
from tests.e2e.federation import Federation, federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def accepted(f: Federation, name: str) -> int:
    status = f[name].status()
    return status.accepted if status else 0


def test_three_sites_learn_from_each_other_through_a_crash_a_late_joiner_and_a_leaver(tmp_path: Path) -> None:
    with federation(tmp_path, ["north", "south", "east", "late"]) as f:
        trio = ("north", "south", "east")
        for name in trio:
            f[name].start()
        for name in trio:
            f.until(f"{name} took a model in", lambda name=name: accepted(f, name) >= 1)
            f.until(f"{name} tells of it", lambda name=name: f[name].events("visit_merged"))
            merged = f[name].events("visit_merged")
            assert {e["site"] for e in merged} <= set(trio) - {name}

        f["south"].end(signal.SIGKILL)
        log = read_events(f["south"].folder / "state" / "events.jsonl", 5000)
        crashed_at = max((e["round"] for e in log if e["event"] == "round_finished"), default=0)
        others_at = {name: f.round_of(name) for name in ("north", "east")}
        for name, at in others_at.items():
            f.until_round(name, at + 3)  # nobody waits for the one that is gone
            f.until(f"{name} sees south dead", lambda name=name: f.sees(name, "south", "dead"))
        row = f["north"].peer("south")
        assert row is not None and row.reason, "a state without a reason"

        f["south"].start()
        f.until("south is back", lambda: f["south"].status() is not None)
        f.until("south's worker is back", lambda: len(f["south"].events("worker_ready")) == 2)
        resumed = f["south"].events("worker_ready")[-1]["round"]
        assert crashed_at <= resumed <= crashed_at + 1, (crashed_at, resumed)
        f.until_round("south", crashed_at + 2)
        f.until("north sees south alive", lambda: f.sees("north", "south", "alive"))

        f["late"].start()
        f.until("late took a model in", lambda: accepted(f, "late") >= 1)
        f.until("the others see late alive", lambda: all(f.sees(n, "late", "alive") for n in trio))

        f.until("east sees whom to tell", lambda: all(f.sees("east", n, "alive") for n in ("north", "late")))
        assert f["east"].end(signal.SIGTERM) == 0
        f.until("east has left", lambda: f.sees("north", "east", "left") and f.sees("late", "east", "left"))
        f.until_round("north", f.round_of("north") + 2)

        codes = {name: f[name].end() for name in ("north", "south", "late")}
        assert codes == {"north": 0, "south": 0, "late": 0}


def test_the_budget_ends_training_and_the_site_stays_a_member(tmp_path: Path) -> None:
    other = {"north": "south", "south": "north"}
    with federation(tmp_path, ["north", "south"], site={"rounds": 2, "report_test": True}) as f:
        for s in f.sites.values():
            s.start()
        for s in f.sites.values():
            f.until(f"{s.name} finished", lambda s=s: (d := s.status()) is not None and d.phase == "finished")
            status = s.status()
            assert status is not None and status.round == 2
            assert status.dice_test_start is not None and status.dice_test is not None
            f.until("the other is a member", lambda s=s: f.sees(s.name, other[s.name], "alive"))


@pytest.mark.parametrize("algorithm", ["local", "gossip_average"])
def test_the_controls_run_in_the_same_daemons(tmp_path: Path, algorithm: str) -> None:
    with federation(tmp_path, ["north", "south"], algorithm={"name": algorithm}) as f:
        for s in f.sites.values():
            s.start()
        for name in f.sites:
            f.until_round(name, 4)
        if algorithm == "local":
            assert [accepted(f, n) for n in f.sites] == [0, 0]
            assert all(s.status().sent == 0 for s in f.sites.values())  # type: ignore[union-attr]
        else:
            f.until("a model was taken in", lambda: sum(accepted(f, n) for n in f.sites) >= 1)
            for site in f.sites.values():
                status = site.status()
                assert status is not None and status.deployed in ("mix", "personal", "shared"), status
                assert status.deployed_reason


def test_another_contract_is_refused_on_both_sides_with_the_field_that_differs(tmp_path: Path) -> None:
    with federation(tmp_path, ["north", "south"]) as f:
        other = f.peers_file.read_text().replace("width: 4", "width: 6")
        (tmp_path / "other.yaml").write_text(other)
        f["south"].edit(peers=str(tmp_path / "other.yaml"))
        for s in f.sites.values():
            s.start()
        for who, whom in (("north", "south"), ("south", "north")):
            f.until(f"{who} refuses {whom}", lambda who=who, whom=whom: f.sees(who, whom, "refused"))
            row = f[who].peer(whom)
            assert (
                row is not None and "network.width" in row.reason and "4" in row.reason and "6" in row.reason
            )
            status = f[who].status()
            assert status is not None and status.state == "degraded"
            assert any(reason.startswith(f"{whom}: refused") for reason in status.reasons), status.reasons
        f.until_round("north", 3)
        assert accepted(f, "north") == 0


def test_reload_removes_a_site_and_an_invalid_list_changes_nothing(
    tmp_path: Path,
) -> None:
    with federation(tmp_path, ["north", "south"]) as f:
        for s in f.sites.values():
            s.start()
        f.until("they see each other", lambda: f.sees("north", "south", "alive"))
        good = f.peers_file.read_text()
        f.peers_file.write_text(good.replace("federation: test", "fedration: test"))
        f["north"].send(signal.SIGHUP)
        f.until("refused", lambda: f["north"].events("config_refused"))
        assert "fedration" in f["north"].events("config_refused")[0]["reason"]
        # Its list still holds. On a busy machine south may be suspected for a moment, and comes back.
        f.until("north still sees south", lambda: f.sees("north", "south", "alive"))

        f.peers_file.write_text(good)
        f.edit(lambda doc: doc["sites"].pop())  # south is no longer listed
        f["north"].send(signal.SIGHUP)
        f.until("reloaded", lambda: f["north"].events("config_reloaded"))
        assert f["north"].peer("south") is None
        f.until("south is cut off", lambda: f.sees("south", "north", "refused"))
        row = f["south"].peer("north")
        # In the words of its open connection, or of a new one that is not accepted, whichever came first.
        words = ("north does not list the key", "does not accept this site's key")
        assert row is not None and any(text in row.reason for text in words), row


def test_a_worker_that_is_killed_is_restarted_and_goes_on(tmp_path: Path) -> None:
    import os

    with federation(tmp_path, ["north"]) as f:
        north = f["north"]
        north.start()
        f.until_round("north", 2)
        status = north.status()
        assert status is not None and status.worker.pid is not None
        os.kill(status.worker.pid, signal.SIGKILL)
        f.until("the death is noted", lambda: north.events("worker_lost"))
        assert "SIGKILL" in north.events("worker_lost")[0]["reason"]
        f.until_round("north", status.round + 2)
        again = north.status()
        assert again is not None and again.worker.restarts == 1
        f.until("all is well again", lambda: f.well("north"))


def test_a_stuck_worker_is_killed_and_restarted(tmp_path: Path) -> None:
    import os

    site = {"device": {"device": "cpu", "threads": 1, "stuck_after_s": 20.0}}
    with federation(tmp_path, ["north"], site=site) as f:
        north = f["north"]
        north.start()
        f.until_round("north", 1)
        status = north.status()
        assert status is not None and status.worker.pid is not None
        os.kill(status.worker.pid, signal.SIGSTOP)
        f.until("the stuck worker is killed", lambda: north.events("worker_lost"))
        assert "no progress" in north.events("worker_lost")[0]["reason"]
        f.until_round("north", status.round + 2)


def test_a_killed_daemon_leaves_no_worker_behind(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        f["north"].start()
        f.until_round("north", 1)
        status = f["north"].status()
        assert status is not None and status.worker.pid is not None
        f["north"].end(signal.SIGKILL)
        proc = Path(f"/proc/{status.worker.pid}")

        def gone() -> bool:
            try:
                return "\nState:\tZ" in (proc / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return True

        f.until("the worker is gone", gone)


def test_pause_and_resume(tmp_path: Path) -> None:
    from gossipseg.wire.control import ControlClient

    with federation(tmp_path, ["north"]) as f:
        f["north"].start()
        f.until_round("north", 1)
        with ControlClient(f["north"].socket) as client:
            assert client.pause().ok
        f.until("paused", lambda: (s := f["north"].status()) is not None and s.phase == "paused")
        with ControlClient(f["north"].socket) as client:
            assert client.resume().ok
        f.until_round("north", f.round_of("north") + 1)
