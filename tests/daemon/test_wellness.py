"""Looks at other sites, lost places, and what both come to in status and metrics."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gossipseg import trust
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.membership.member import Member
from gossipseg.core.types import MemberState
from gossipseg.daemon.control.service import Service
from gossipseg.daemon.health import concerns, reachability
from gossipseg.daemon.health.deleted_places import Places
from gossipseg.daemon.health.reachability import Found, Reaching
from gossipseg.daemon.observe.metrics import sample
from gossipseg.daemon.reload import listed
from gossipseg.errors import LocalError
from gossipseg.store import DirectoryLock
from gossipseg.wire import documents as doc
from gossipseg.wire.control import ControlClient, ControlServer
from gossipseg.wire.listen_address import ListenFault
from gossipseg.wire.reached import Reached
from tests.core.rig import TRAINING, alive
from tests.ctl.conftest import Answers
from tests.daemon.harness import daemon_of, files_only
from tests.e2e.federation import Federation

OK, REFUSED = Reached("ok", "a:1"), Reached("refused", "a:1", "Connection refused")


# ---------------------------------------------------------------- when which site is looked at


@dataclass
class World:
    """A core, a transport and a clock that a test moves by hand."""

    now: float = 1000.0
    grace_s: float = 60.0
    members: dict[str, Member] = field(default_factory=dict)
    out: Reached = OK
    back: Reached = OK
    dialled: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    async def reach(self, site: str) -> Reached:
        self.dialled.append(site)
        return self.out

    async def ask_reach(self, site: str) -> Reached:
        self.asked.append(site)
        return self.back

    def reaching(self, *sites: str, state: MemberState = MemberState.ALIVE) -> Reaching:
        for site in sites:
            self.members[site] = Member(site, state, since=self.now)
        return Reaching(self, self, lambda e, **f: self.notes.append((e, f)), clock=lambda: self.now)

    async def step(self, r: Reaching, at: float) -> list[str]:
        self.now = at
        due = r.due()
        await r.look_at(due)
        return due


async def test_a_site_that_has_come_is_looked_at_both_ways_and_then_left_alone() -> None:
    w = World()
    r = w.reaching("b")
    assert await w.step(r, 1001) == []
    assert await w.step(r, 1000 + reachability.SETTLE_S) == ["b"]
    assert w.dialled == w.asked == ["b"] and not w.notes and r.found["b"].well
    w.members["b"].called_at = 1500.0
    assert await w.step(r, 1000 + reachability.WELL_S) == []
    assert await w.step(r, 1010 + reachability.WELL_S) == ["b"]


async def test_when_nothing_comes_for_a_while_it_is_asked_again() -> None:
    w = World()
    r = w.reaching("b")
    await w.step(r, 1002)
    assert await w.step(r, 1002 + reachability.QUIET_S) == ["b"], "it has not called in since"
    w.members["b"].called_at = w.now + 1
    w.members["b"].sends.fails(w.now, "timeout")
    assert await w.step(r, w.now + reachability.QUIET_S) == ["b"], "models to it do not get through"


async def test_what_is_amiss_is_looked_at_later_and_later_and_forgotten_once_well() -> None:
    w = World(back=REFUSED)
    r = w.reaching("b")
    await w.step(r, 1002)
    looks = [t for t in range(1003, 4000) if await w.step(r, float(t))]
    gaps = [b - a for a, b in zip([1002, *looks], looks, strict=False)]
    assert gaps[:4] == [20, 40, 80, 160] and max(gaps) == reachability.AGAIN_MAX_S
    assert [n for n, _ in w.notes] == ["not_reached"], "told once"
    w.back = OK
    await w.step(r, w.now + reachability.AGAIN_MAX_S)
    assert r.found["b"].well and w.notes[-1][0] == "reached" and w.notes[-1][1]["direction"] == "in"


async def test_a_call_that_comes_in_shows_that_the_way_is_free_again() -> None:
    """Ten minutes would be long for a false alarm."""
    w = World(back=REFUSED)
    r = w.reaching("b")
    await w.step(r, 1002)
    looks = [t for t in range(1003, 2000) if await w.step(r, float(t))]
    w.back, w.members["b"].called_at = OK, w.now + 1
    assert await w.step(r, w.now + 2) == ["b"] and r.found["b"].well, (looks, "not after 320 s")
    w.back = replace(REFUSED, works_at="b:9")
    await w.step(r, w.now + 2 * reachability.WELL_S)
    await w.step(r, w.now + reachability.AGAIN_S)
    w.members["b"].called_at = w.now + 1
    assert await w.step(r, w.now + reachability.AGAIN_S) == [], "it calls by another way, as before"


async def test_a_site_that_was_never_seen_is_dialled_and_cannot_be_asked() -> None:
    w = World(out=REFUSED)
    r = w.reaching("b", state=MemberState.UNSEEN)
    assert await w.step(r, 1029) == []
    assert await w.step(r, 1030) == ["b"]
    assert w.asked == [] and r.found["b"].back.outcome == "not_asked" and not r.found["b"].well


async def test_a_site_that_left_is_let_alone_and_one_that_is_not_listed_any_more_forgotten() -> None:
    w = World()
    r = w.reaching("b", "c")
    await w.step(r, 1002)
    w.members["b"].state = MemberState.LEFT
    del w.members["c"]
    assert await w.step(r, 99_999) == [] and list(r.found) == ["b"]


async def test_an_older_site_is_not_asked_all_the_time() -> None:
    w = World(back=Reached("older"))
    r = w.reaching("b")
    await w.step(r, 1002)
    assert r.found["b"].well and await w.step(r, 1002 + reachability.AGAIN_S) == []


async def test_an_answer_is_good_for_a_while() -> None:
    """The site answers such questions once in ten seconds; an operator may ask sooner."""
    w = World(back=REFUSED)
    r = w.reaching("b")
    await w.step(r, 1002)
    w.now, w.back = 1005.0, Reached("not_asked", "", "ask again in 10 s")
    await r.look_now()
    assert r.found["b"].back == REFUSED
    w.now = 1100.0
    await r.look_now()
    assert r.found["b"].back.outcome == "not_asked"


async def test_in_a_large_federation_a_few_tell_enough() -> None:
    w = World()
    r = w.reaching(*(f"s{i:03}" for i in range(200)))
    w.members["s150"].calls.fails(w.now, "timeout")
    looked = await w.step(r, 1002)
    assert "s150" in looked and len(looked) <= reachability.MOST_WELL + 1
    assert await w.step(r, 1003) == []
    assert len(await r.look_now()) == reachability.MOST_ASKED


# ---------------------------------------------------------------- places


class Socket:
    """A control socket that a test takes away."""

    def __init__(self, path: Path) -> None:
        self.path, self.intact, self.renewed = path, True, 0
        self.error: LocalError | None = None

    async def renew(self) -> None:
        if self.error is not None:
            raise self.error
        self.intact, self.renewed = True, self.renewed + 1


async def test_a_deleted_socket_is_made_again_and_told_of_for_an_hour(tmp_path: Path) -> None:
    now, notes = [0.0], []
    places = Places(tmp_path, lambda e, **f: notes.append(e), clock=lambda: now[0])
    socket = Socket(tmp_path / "control.sock")
    await places.look(socket)
    assert places.lost == {}
    socket.intact = False
    await places.look(socket)
    assert socket.renewed == 1 and "made again at" in places.lost["control_socket_gone"]
    now[0] = 3599
    await places.look(socket)
    assert notes == ["control_socket_gone"] and places.lost
    now[0] = 3601
    await places.look(socket)
    assert places.lost == {}
    socket.intact, socket.error = False, LocalError("no room")
    await places.look(socket)
    await places.look(socket)
    assert "cannot be made again: no room" in places.lost["control_socket_gone"] and len(notes) == 2


async def test_a_deleted_state_directory_is_told_of_and_made_again_with_its_lock(tmp_path: Path) -> None:
    state, notes = tmp_path / "state", []
    state.mkdir()
    places, socket = Places(state, lambda e, **f: notes.append(e)), Socket(state / "control.sock")
    shutil.rmtree(state)
    await places.look(socket)
    assert "was deleted under the running daemon" in places.lost["state_dir_gone"]
    assert state.stat().st_mode & 0o777 == 0o700 and notes == ["state_dir_gone"]
    with pytest.raises(LocalError):
        DirectoryLock(state / "daemon.lock").acquire()
    await places.look(socket)
    assert notes == ["state_dir_gone"]


async def test_a_deleted_state_directory_that_a_worker_made_anew_counts_as_deleted(
    tmp_path: Path,
) -> None:
    state, notes = tmp_path / "state", []
    state.mkdir()
    places = Places(state, lambda e, **f: notes.append(e))
    shutil.rmtree(state)
    (state / "outbox").mkdir(parents=True)
    for _ in range(2):
        await places.look(Socket(state / "control.sock"))
        assert "was deleted under the running daemon" in places.lost["state_dir_gone"]
        assert places.lost["state_dir_gone"].endswith("; the folder that is there now was made since")
    with pytest.raises(LocalError):
        DirectoryLock(state / "daemon.lock").acquire()
    assert notes == ["state_dir_gone"]


async def test_a_state_directory_that_cannot_be_made_again(tmp_path: Path) -> None:
    state = tmp_path / "mount" / "state"
    state.mkdir(parents=True)
    places = Places(state, lambda e, **f: None)
    (tmp_path / "mount").rename(tmp_path / "away")
    await places.look(Socket(state / "control.sock"))
    assert "another folder" in places.lost["state_dir_gone"] and not (tmp_path / "mount").exists()
    (tmp_path / "mount").mkdir()
    await places.look(Socket(state / "control.sock"))
    assert not state.exists(), "the disk may be away, and this its mount point"


async def test_another_folder_in_its_place(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    places = Places(state, lambda e, **f: None)
    state.rename(tmp_path / "old")
    state.mkdir()
    await places.look(Socket(state / "control.sock"))
    assert "is another folder than at the start" in places.lost["state_dir_gone"]
    assert not list(state.iterdir()), "nothing is written into what may be an unmounted disk"


async def test_a_state_directory_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was away for a moment: what was said of it is over, whatever stood in its place."""
    state, notes = tmp_path / "state", []
    state.mkdir()
    places, socket = Places(state, lambda e, **f: notes.append(e)), Socket(state / "control.sock")
    state.rename(tmp_path / "old")
    await places.look(socket)
    assert "was deleted" in places.lost["state_dir_gone"]
    shutil.rmtree(state)
    await places.look(socket)
    assert state.is_dir(), "made again, again"
    shutil.rmtree(state)
    (tmp_path / "old").rename(state)
    await places.look(socket)
    assert places.lost == {} and notes == ["state_dir_gone", "state_dir_back"]
    with monkeypatch.context() as m:
        m.setattr(
            "gossipseg.daemon.health.deleted_places.Path.stat",
            raising(OSError(errno.EIO, "Input/output error")),
        )
        await places.look(socket)
    assert places.lost["state_dir_gone"].endswith("cannot be reached: Input/output error")
    await places.look(socket)
    assert places.lost == {}


def raising(error: Exception) -> Callable[..., None]:
    def fails(*_: object, **__: object) -> None:
        raise error

    return fails


async def test_the_real_socket_is_made_again(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "control.sock", Answers())
    await server.start()
    assert server.intact
    server.path.unlink()
    assert not server.intact
    await server.renew()
    assert server.intact and server.path.stat().st_mode & 0o777 == 0o600

    def ask() -> str:
        with ControlClient(server.path) as client:
            return client.status().site

    import asyncio

    assert await asyncio.to_thread(ask) == "north"
    await server.close()
    assert not server.path.exists()


# ---------------------------------------------------------------- status and metrics


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south") as f:
        yield f


def service_of(daemon: Any) -> Service:
    return Service(
        daemon.runtime,
        identity=lambda: daemon.identity,
        stop=lambda reason: None,
        reload=lambda: (),
        discovery=doc.DiscoveryStatus,
    )


async def test_a_peer_that_never_came_is_a_reason_and_a_metric(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_of(files)
    r, service = daemon.runtime, service_of(daemon)
    r.inject(ev.Start())
    status = await service.status()
    assert (status.state, status.concerns) == ("ok", ())
    later = time.monotonic() + r.node.grace_s + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    r.reaching.found["south"] = Found(Reached("timeout", "10.0.0.2:7443"), Reached("not_asked"), later, 1)
    status = await service.status()
    (concern,) = status.concerns
    assert status.state == "degraded" and concern.code == "never_seen" and concern.site == "south"
    assert "10.0.0.2:7443: no answer to the connection: a firewall" in concern.text
    assert "open its port" in concern.remedy and concern.remedy[:-1] in status.reasons[0]
    shown = {tuple(s.labels.values()): s.value for m in sample(r, later, degraded=True) for s in m.samples
             if s.name == "gossipseg_concern"}  # fmt: skip
    assert shown["never_seen",] == 1 and shown["path_mtu",] == 0
    assert {code for (code,) in shown} == set(concerns.REMEDIES)
    await r.transport.close()


def meets_south(daemon: Any) -> None:
    r = daemon.runtime
    r.inject(ev.Start())
    r.inject(ev.Incoming("south", 1, ms.Ping((alive("south"),), TRAINING)))
    assert r.node.members["south"].live


FAULT = ListenFault("listen is hosta:7443: hosta, which is 127.0.1.1", "Write listen: 0.0.0.0:7443.", True)


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
    status = await service_of(daemon).status()
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
    rows = (await service_of(daemon).reach()).rows
    assert [(row.site, row.direction, row.outcome, row.good) for row in rows] == [
        ("south", "out", "ok", True),
        ("south", "in", "refused", False),
    ]
    assert "at a:2 its calls get through" in rows[1].text and "List a:2" in rows[1].remedy
    await daemon.runtime.transport.close()


async def test_status_is_told_without_a_state_directory(files: Federation) -> None:
    daemon = daemon_of(files)
    shutil.rmtree(daemon.config.site.state_dir)
    daemon.runtime.places.lost["state_dir_gone"] = "the state directory was deleted"
    status = await service_of(daemon).status()
    assert status.state == "degraded" and "was deleted" in status.reasons[0] and status.disk_free_bytes == 0
    await daemon.runtime.transport.close()


async def test_a_port_that_was_left_open_is_shown(files: Federation) -> None:
    files["north"].edit(listen="127.0.0.1:0")
    daemon = daemon_of(files)
    await daemon.transport.start(daemon.runtime.intake)
    try:
        shown = (await service_of(daemon).status()).listen
        assert shown == daemon.transport.address and not shown.endswith(":0")
    finally:
        await daemon.transport.close()


async def test_the_list_is_told_to_others_and_a_reload_changes_what_is_told(
    files: Federation, tmp_path: Path
) -> None:
    daemon = daemon_of(files)
    r = daemon.runtime
    r.inject(ev.Start())
    assert r.node.info.listed == listed(daemon.config) != ""
    fresh = trust.create_identity("south", tmp_path / "fresh").certificate_pem.decode()
    files.edit(lambda d: d["sites"][1].update(certificate=fresh))
    before = r.node.info.listed
    await daemon.reload()
    assert r.node.info.listed != before
    await r.transport.close()
