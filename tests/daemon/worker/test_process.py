"""The supervisor against tiny real processes that speak the worker's protocol: deaths, last words, stops."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gossipseg.daemon.worker import process
from gossipseg.daemon.worker.memory_kills import Kills, Recent
from gossipseg.daemon.worker.process import MAX_QUICK_DEATHS, WorkerSupervisor, last_line
from gossipseg.learn import protocol

PRELUDE = """
import json, os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["GOSSIPSEG_WORKER_SOCKET"]); f = s.makefile()
def say(type, /, **fields): s.sendall(json.dumps({"type": type, **fields}).encode() + b"\\n")
def hear(): return json.loads(f.readline() or os._exit(69))["type"]
def ready(): say("Ready", round=0, steps=0, cases=1, network_signature="n", tensors={}, parameters=1,
                 device="cpu", amp="no", splits={})
def done(n): say("RoundDone", round=n, steps=n, loss=None, terms={},
                 dice_val=None, dice_val_local=None, seconds=0)
"""


@dataclass(frozen=True)
class Waiting:
    """What the owner was told of data that are away."""

    reason: str


@dataclass
class Owner:
    """Notes what it is told, in order."""

    heard: list[Any] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_worker_message(self, message: protocol.FromWorker) -> None:
        self.heard.append(message)
        self.changed.set()

    def on_worker_lost(self, reason: str, final: bool) -> None:
        self.heard.append((reason, final))
        self.changed.set()

    def on_worker_waiting(self, reason: str) -> None:
        self.heard.append(Waiting(reason))
        self.changed.set()

    @property
    def deaths(self) -> list[tuple[str, bool]]:
        return [h for h in self.heard if isinstance(h, tuple)]

    def of(self, kind: type) -> list[Any]:
        return [h for h in self.heard if isinstance(h, kind)]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


@dataclass(frozen=True)
class Spec:
    state_dir: str
    listed: list[str] | None = None


@asynccontextmanager
async def supervised(
    tmp_path: Path, script: str, **changes: Any
) -> AsyncIterator[tuple[WorkerSupervisor, Owner]]:
    owner = Owner()
    given: dict[str, Any] = {
        "socket_path": tmp_path / "w.sock",
        "stuck_after_s": 60.0,
        "clock": time.monotonic,
        "command": (sys.executable, "-S", "-c", PRELUDE + script),
        "first_backoff_s": 0.01,
        "spec": Spec(str(tmp_path)),
    }
    supervisor = WorkerSupervisor(owner=owner, **{**given, **changes})
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, owner
    finally:
        await supervisor.stop(5.0)
        await running


async def stopped_without_waiting(supervisor: WorkerSupervisor) -> None:
    """Stop it, with a time limit that would be waited for in vain: a stop that waits for it never ends."""
    async with asyncio.timeout(60):
        await supervisor.stop(1e6)


async def test_a_worker_is_configured_works_and_stops(tmp_path: Path) -> None:
    script = "assert hear() == 'Configure'; ready(); assert hear() == 'StartRound'; done(1); hear()"
    async with supervised(tmp_path, script) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        assert supervisor.status.state == "ready" and supervisor.status.pid
        supervisor.send(protocol.StartRound(1))
        assert supervisor.status.state == "training"
        await owner.until(lambda: owner.of(protocol.RoundDone))
    assert owner.deaths == [] and supervisor.status.state == "stopped" and supervisor.status.pid is None
    assert not (tmp_path / "w.sock").exists()


async def test_what_it_said_last_is_heard_before_its_death_is_told(tmp_path: Path) -> None:
    script = (
        "hear()\nfor i in range(4000): say('Preparing', activity='scan ' + 'x' * 500, fraction=0.5)\n"
        "say('Fatal', kind='data', message='north/7.nii: unreadable.'); os._exit(65)"
    )
    async with supervised(tmp_path, script) as (supervisor, owner):
        await owner.until(lambda: owner.deaths)
        assert len(owner.of(protocol.Preparing)) == 4000
        assert owner.deaths == [("north/7.nii: unreadable.", True)]
        assert supervisor.status.state == "failed" and supervisor.status.restarts == 0


async def test_the_last_round_is_heard_although_it_is_stopped(tmp_path: Path) -> None:
    script = "hear(); ready(); hear()\nwhile hear() != 'Stop': pass\ndone(1)"
    async with supervised(tmp_path, script) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        supervisor.send(protocol.StartRound(1))
        await supervisor.stop(10.0)
        assert owner.of(protocol.RoundDone) and owner.deaths == []


async def test_after_quick_deaths_it_has_failed_for_good(tmp_path: Path) -> None:
    async with supervised(tmp_path, "print('no memory', flush=True); os._exit(3)") as (supervisor, owner):
        await owner.until(lambda: len(owner.deaths) == MAX_QUICK_DEATHS)
        assert [final for _, final in owner.deaths] == [False] * (MAX_QUICK_DEATHS - 1) + [True]
        assert "exit code 3" in owner.deaths[0][0] and "no memory" in owner.deaths[0][0]
        assert supervisor.status.state == "failed" and supervisor.status.restarts == MAX_QUICK_DEATHS - 1


async def test_a_finished_round_forgives_the_deaths_before_it(tmp_path: Path) -> None:
    script = "hear(); ready(); hear(); done(1); os._exit(1)"
    async with supervised(tmp_path, script) as (supervisor, owner):
        for life in range(1, MAX_QUICK_DEATHS + 2):
            await owner.until(lambda n=life: len(owner.of(protocol.Ready)) == n)  # type: ignore[misc]
            supervisor.send(protocol.StartRound(1))
        await owner.until(lambda: len(owner.deaths) > MAX_QUICK_DEATHS)
        assert not any(final for _, final in owner.deaths)


@pytest.mark.parametrize(("kind", "final"), [("config", True), ("data", False), ("local", False)])
async def test_what_is_fatal_after_ready_may_pass(tmp_path: Path, kind: str, final: bool) -> None:
    script = f"hear(); ready(); hear(); say('Fatal', kind='{kind}', message='m'); os._exit(1)"
    async with supervised(tmp_path, script) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        supervisor.send(protocol.StartRound(1))
        await owner.until(lambda: owner.deaths)
        assert owner.deaths == [("m", final)]


async def test_one_that_says_nothing_is_killed_and_its_reason_told(tmp_path: Path) -> None:
    script = "hear(); ready(); hear(); signal.pause()"
    async with supervised(tmp_path, script, stuck_after_s=0.4) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        supervisor.send(protocol.StartRound(1))
        await owner.until(lambda: owner.deaths)
        assert owner.deaths[0][0].startswith("no progress for")


async def test_one_that_hangs_over_an_order_beside_rounds_is_killed(tmp_path: Path) -> None:
    script = "hear(); ready(); hear(); say('PersonalHeld', refused=[]); hear(); signal.pause()"
    now = 0.0
    async with supervised(tmp_path, script, stuck_after_s=0.2, clock=lambda: now) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        supervisor.send(protocol.HoldPersonal([]))
        await owner.until(lambda: owner.of(protocol.PersonalHeld))
        now = 1000.0
        await asyncio.sleep(0.3)  # some looks at the clock
        assert owner.deaths == [], "it has answered, and waits for orders"
        supervisor.send(protocol.HoldPersonal([]))
        now = 2000.0
        await owner.until(lambda: owner.deaths)
        assert owner.deaths[0][0].startswith("no progress for")


async def test_a_paused_worker_may_be_silent(tmp_path: Path) -> None:
    script = "hear(); ready()\nwhile hear() != 'Stop': pass"
    now = 0.0
    async with supervised(tmp_path, script, stuck_after_s=0.2, clock=lambda: now) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        supervisor.send(protocol.SetPaused(True))
        supervisor.send(protocol.StartRound(1))
        now = 1000.0
        watched = asyncio.create_task(supervisor._watch(supervisor._process, Recent(Kills(), 0.0)))  # type: ignore[arg-type]
        done, _ = await asyncio.wait({watched}, timeout=0.2)
        watched.cancel()
        assert not done and owner.deaths == []


async def test_nonsense_is_told_as_the_reason(tmp_path: Path) -> None:
    script = "hear(); s.sendall(b'what?\\n'); signal.pause()"
    async with supervised(tmp_path, script) as (_, owner):
        await owner.until(lambda: owner.deaths)
        assert "the worker sent an invalid message and was stopped" in owner.deaths[0][0]


async def test_one_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    async with supervised(tmp_path, "", command=(str(tmp_path / "nothing"),)) as (_, owner):
        await owner.until(lambda: len(owner.deaths) == MAX_QUICK_DEATHS)
        assert "could not be started" in owner.deaths[0][0]


async def test_a_stop_before_it_has_connected_is_quick(tmp_path: Path) -> None:
    command = (sys.executable, "-S", "-c", "import signal; signal.pause()")
    async with supervised(tmp_path, "", command=command) as (supervisor, owner):
        async with asyncio.timeout(10):
            while supervisor.status.pid is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await stopped_without_waiting(supervisor)
        assert owner.deaths == []


async def test_one_that_is_not_ready_has_nothing_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "UNREADY_STOP_S", 0.1)
    script = "say('Preparing', activity='importing', fraction=0)\nwhile hear(): pass"
    async with supervised(tmp_path, script) as (supervisor, owner):
        await owner.until(lambda: owner.heard)
        await stopped_without_waiting(supervisor)
        assert owner.deaths == []


async def test_one_that_is_stuck_is_killed_at_the_stop(tmp_path: Path) -> None:
    async with supervised(tmp_path, "hear(); ready(); signal.pause()") as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        await supervisor.stop(0.1)
        assert supervisor.status.state == "stopped"


async def test_an_order_without_a_worker_changes_nothing(tmp_path: Path) -> None:
    spec: Any = Spec(str(tmp_path))
    supervisor = WorkerSupervisor(
        spec, Owner(), socket_path=tmp_path / "w", stuck_after_s=1, clock=time.monotonic
    )
    supervisor.status.state = "restarting"
    supervisor.send(protocol.StartRound(1))
    assert supervisor.status.state == "restarting"


async def test_a_large_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 10)
    (tmp_path / "worker.log").write_text("much too long a text")
    async with supervised(tmp_path, "hear(); ready(); hear()") as (_, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
    assert (tmp_path / "worker.1.log").read_text() == "much too long a text"


class Share:
    """A data folder that is away so many times, or until somebody mounts it."""

    def __init__(self, times: float = 0) -> None:
        self.times, self.looks = times, 0

    async def obstacle(self) -> str:
        self.looks += 1
        return "data.path /mnt/nas is not there" if self.looks <= self.times else ""


async def test_while_the_data_are_away_no_worker_is_started_and_nobody_gives_up(tmp_path: Path) -> None:
    share = Share(3 * MAX_QUICK_DEATHS)
    changes = {"obstacle": share.obstacle, "first_wait_s": 1e-6}
    async with supervised(tmp_path, "hear(); ready(); hear()", **changes) as (supervisor, owner):
        await owner.until(lambda: owner.heard)
        assert owner.heard == [Waiting("data.path /mnt/nas is not there")], "told once"
        assert supervisor.status.state == "waiting" and "/mnt/nas" in supervisor.status.reason
        assert supervisor.status.pid is None
        await owner.until(lambda: owner.of(protocol.Ready))
        assert owner.deaths == [] and supervisor.status.restarts == 0 and supervisor.status.reason == ""
        assert share.looks == share.times + 1 and len(owner.of(Waiting)) == 1


async def test_a_pause_ends_when_an_operator_asks(tmp_path: Path) -> None:
    share = Share(1)
    changes = {"obstacle": share.obstacle, "first_wait_s": 3600.0}
    async with supervised(tmp_path, "hear(); ready(); hear()", **changes) as (supervisor, owner):
        await owner.until(lambda: owner.of(Waiting))
        supervisor.try_again()
        await owner.until(lambda: owner.of(protocol.Ready))


async def test_a_stop_while_waiting_is_quick(tmp_path: Path) -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    for obstacle in (never, Share(9).obstacle):
        async with supervised(tmp_path, "", obstacle=obstacle, first_wait_s=3600.0) as (supervisor, _):
            await asyncio.sleep(0)
            await stopped_without_waiting(supervisor)


async def test_data_that_go_away_later_are_waited_for_and_count_as_no_death(tmp_path: Path) -> None:
    script = "hear(); ready(); hear(); say('Fatal', kind='away', message='gone'); os._exit(65)"
    lives = MAX_QUICK_DEATHS + 2
    async with supervised(tmp_path, script, first_wait_s=0.01) as (supervisor, owner):
        for life in range(1, lives):
            await owner.until(lambda n=life: len(owner.of(protocol.Ready)) == n)  # type: ignore[misc]
            supervisor.send(protocol.StartRound(1))
        await owner.until(lambda: len(owner.of(Waiting)) >= lives - 1)
        assert owner.deaths == [] and set(owner.of(Waiting)) == {Waiting("gone")}


async def test_data_that_are_away_at_the_first_start_are_waited_for(tmp_path: Path) -> None:
    script = "hear(); say('Fatal', kind='away', message='images is empty'); os._exit(65)"
    async with supervised(tmp_path, script, first_wait_s=3600.0) as (supervisor, owner):
        await owner.until(lambda: owner.of(Waiting))
        assert supervisor.status.state == "waiting" and owner.deaths == []


async def test_failed_training_is_tried_again_slowly_and_when_an_operator_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"os._exit(3) if not os.path.exists({str(tmp_path / 'mended')!r}) else (hear(), ready(), hear())"
    async with supervised(tmp_path, script) as (supervisor, owner):
        await owner.until(lambda: len(owner.deaths) == MAX_QUICK_DEATHS)
        assert owner.deaths[-1][1] and supervisor.status.state == "failed"
        supervisor.try_again()
        await owner.until(lambda: len(owner.deaths) == 2 * MAX_QUICK_DEATHS)
        assert owner.deaths[-1][1]
        (tmp_path / "mended").touch()
        supervisor.try_again()
        await owner.until(lambda: owner.of(protocol.Ready))
        assert supervisor.status.state == "ready" and supervisor.status.reason == ""
    monkeypatch.setattr(process, "FAILED_RETRY_S", 0.01)
    (tmp_path / "mended").unlink()
    async with supervised(tmp_path, script) as (_, owner):
        await owner.until(lambda: len(owner.deaths) == MAX_QUICK_DEATHS + 3)
        assert all(final for _, final in owner.deaths[MAX_QUICK_DEATHS - 1 :])


@pytest.mark.parametrize(
    ("counters", "says"),
    [((4, 5), "the kernel killed it for lack of memory"), ((4, 4), "killed by SIGKILL (by somebody")],
)
async def test_a_death_by_sigkill_names_memory_where_the_kernel_does(
    tmp_path: Path, counters: tuple[int, int], says: str
) -> None:
    numbers = iter(counters)
    script = "hear(); print('last', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    kills = lambda: Kills(next(numbers, 9))  # noqa: E731
    async with supervised(tmp_path, script, kills=kills, first_backoff_s=3600.0) as (_, owner):
        await owner.until(lambda: owner.deaths)
        assert says in owner.deaths[0][0] and "its last log line: last" in owner.deaths[0][0]


async def test_a_worker_without_a_word_is_not_given_those_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text("INFO: of an earlier worker\n")
    script = "hear(); os.kill(os.getpid(), signal.SIGKILL)"
    async with supervised(tmp_path, script, first_backoff_s=3600.0) as (_, owner):
        await owner.until(lambda: owner.deaths)
        assert owner.deaths[0][0].endswith("its last log line: none")


async def test_memory_that_others_lacked_long_ago_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossipseg.daemon.worker.memory_kills.RECENT_S", 0.0)
    read: list[Kills] = []
    owners: list[Owner] = []

    def kills() -> Kills:
        read.append(Kills(None, 5 if read else 4))
        for owner in owners:
            owner.changed.set()
        return read[-1]

    script = "hear(); ready(); hear(); os.kill(os.getpid(), signal.SIGKILL)"
    changes = {"kills": kills, "stuck_after_s": 3.0, "first_backoff_s": 3600.0}
    async with supervised(tmp_path, script, **changes) as (supervisor, owner):
        owners.append(owner)
        await owner.until(lambda: owner.of(protocol.Ready) and len(read) >= 4)
        supervisor.send(protocol.StartRound(1))
        await owner.until(lambda: owner.deaths)
        assert "by somebody" in owner.deaths[0][0]


async def test_who_was_killed_here_is_not_said_to_lack_memory(tmp_path: Path) -> None:
    numbers, now = iter(range(100)), 0.0
    script = "hear(); ready(); hear(); signal.pause()"
    changes = {"kills": lambda: Kills(next(numbers)), "stuck_after_s": 0.4, "first_backoff_s": 3600.0}
    changes["clock"] = lambda: now
    async with supervised(tmp_path, script, **changes) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Ready))
        supervisor.send(protocol.StartRound(1))
        now = 1000.0
        await owner.until(lambda: owner.deaths)
        assert owner.deaths[0][0].startswith("no progress for")


async def test_a_worker_has_a_tmp_of_its_own_that_does_not_outlive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    script = (
        "import tempfile; old = os.listdir(os.environ['TMPDIR']); made = tempfile.mkdtemp()\n"
        "hear(); say('Preparing', activity=f'{old} {os.path.dirname(made)}', fraction=0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    async with supervised(tmp_path, script) as (_, owner):
        await owner.until(lambda: len(owner.deaths) == MAX_QUICK_DEATHS)
        said = {message.activity for message in owner.of(protocol.Preparing)}
        assert said == {f"[] {tmp_path / 'tmp'}"}


async def test_a_worker_that_starts_anew_is_told_of_the_sites_that_are_listed_now(tmp_path: Path) -> None:
    script = (
        "configured = json.loads(f.readline())\n"
        "say('Preparing', activity=str(configured['spec'].get('listed')), fraction=0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    async with supervised(tmp_path, script) as (supervisor, owner):
        await owner.until(lambda: owner.of(protocol.Preparing))
        supervisor.relist(["north", "west"])
        await owner.until(lambda: owner.of(protocol.Preparing)[-1].activity == "['north', 'west']")


@pytest.mark.parametrize("name", ["d" * 120, "Universitätsklinikum-放射線科" * 5, "Küche 1"])
async def test_a_long_or_foreign_path_needs_nothing_outside_the_state_directory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    for key in ("LANG", "LC_ALL"):
        monkeypatch.setenv(key, "C")
    folder = tmp_path / name / "state"
    folder.mkdir(parents=True)
    script = "hear(); ready(); hear()"
    spec: Any = Spec(str(folder))
    async with supervised(tmp_path, script, socket_path=folder / "worker.sock", spec=spec) as (_, owner):
        await owner.until(lambda: owner.of(protocol.Ready) or owner.deaths)
        assert owner.deaths == [] and (folder / "worker.sock").is_socket()
        assert (folder / "worker.sock").stat().st_mode & 0o777 == 0o600
    assert not (folder / "worker.sock").exists() and (folder / "worker.log").exists()


def test_signals_without_a_name() -> None:
    assert process.signal_name(11) == "SIGSEGV" and process.signal_name(40) == "signal 40"


def test_last_line(tmp_path: Path) -> None:
    assert last_line(tmp_path / "none") == "none"
    (tmp_path / "log").write_text("first\nlast words\n\n")
    assert last_line(tmp_path / "log") == "last words"
    assert last_line(tmp_path / "log", begins=len("first\nlast words\n")) == "none"
