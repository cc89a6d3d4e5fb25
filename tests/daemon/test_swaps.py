"""Swaps in the shell: orders and reports of a scripted worker, promises and the disk, and what is shown."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.types import ExchangeId, ModelRef, PeerInfo, Phase, SwapTerms, fingerprint
from gossipseg.ctl.exchanges import swap_cells
from gossipseg.ctl.status import pairs
from gossipseg.daemon import runtime
from gossipseg.daemon.main import remembered
from gossipseg.daemon.observe.metrics import sample
from gossipseg.daemon.peers import outbound
from gossipseg.daemon.peers.outbound import PeerCalls
from gossipseg.daemon.recording import replay
from gossipseg.daemon.recording.recorder import Recorder
from gossipseg.daemon.runtime import Runtime
from gossipseg.daemon.worker.process import WorkerSupervisor
from gossipseg.errors import LocalError, PeerUnreachable
from gossipseg.learn import protocol
from gossipseg.store import EventLog, StateFile
from gossipseg.store.auditlog import AUDIT_FILE
from tests.core.rig import alive, model
from tests.daemon.harness import READY as NEW
from tests.daemon.harness import daemon_of, done, perform, running, saved, served, service, settled
from tests.daemon.observe.test_metrics import values
from tests.e2e.federation import Federation

ID = ExchangeId("south", 7)
SWAP = protocol.Swap("south", 7)
READY = msgspec.structs.replace(NEW, round=5, steps=50)
THEIRS = ModelRef("2d" * 32, 40, 5, 50, 10)


@pytest.fixture
def swapping(files: Federation) -> Federation:
    """north and south, which swap."""

    def change(doc: dict[str, Any]) -> None:
        doc["gossip"] = {"exchange": "swap", "warmup_rounds": 0}
        doc["algorithm"] = {"name": "gossip_average"}
        doc["trust"] = {"require_manifests": False}

    files.edit(change)
    return files


class Worker:
    """What was ordered of it."""

    def __init__(self, r: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.r, self.orders = r, []  # type: ignore[var-annotated]
        monkeypatch.setattr(WorkerSupervisor, "send", lambda _, order: self.orders.append(order))

    def of(self, kind: type) -> list[Any]:
        return [o for o in self.orders if isinstance(o, kind)]

    async def says(self, report: protocol.FromWorker) -> None:
        self.r.worker.on_worker_message(report)
        await settled(self.r)


@asynccontextmanager
async def met(f: Federation, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Runtime, Worker]]:
    """north's runtime in training, which has met south; nothing leaves the machine."""
    async with running(f) as (r, failures):
        monkeypatch.setattr(r.calls, "request", nothing)
        monkeypatch.setattr(r.calls, "transfer", nothing)
        worker = Worker(r, monkeypatch)
        await worker.says(READY)
        info = PeerInfo(5, 50, 10, Phase.TRAINING, fingerprint(r.worker.contract))
        hello = ms.Hello(1, 2, "test", r.worker.contract, info)
        r.inject(ev.Incoming("south", 1, hello))
        r.inject(ev.Incoming("south", 2, ms.Ping((alive("south"),), info)))
        yield r, worker
        assert failures == []


async def nothing(*_: Any) -> None:
    """Send nothing."""


def offer(r: Runtime) -> ms.SwapOffer:
    contract = fingerprint(r.worker.contract)
    return ms.SwapOffer(SwapTerms(ID, "test", contract, "south", "north", 10, 8, 50, 5))


async def traded(r: Runtime, worker: Worker, folder: Path) -> None:
    """south has asked; both snapshots are made, sent and admitted."""
    r.inject(ev.Incoming("south", 3, offer(r)))
    await saved(r)
    assert worker.of(protocol.ExportSnapshot) == [protocol.ExportSnapshot(SWAP)]
    exported = folder / "swap.safetensors"
    exported.write_bytes(b"a model")
    await worker.says(protocol.SnapshotExported(SWAP, protocol.Export(str(exported), 8, 53, 0.5), 6))
    assert r.node.swap is not None and r.node.swap.own is not None
    r.inject(ev.Incoming("south", 4, ms.SwapSnapshot(ID, THEIRS)))
    r.inject(ev.ModelArrived("south", THEIRS))
    await saved(r)
    (admit,) = worker.of(protocol.AdmitSnapshot)
    assert (admit.swap, admit.frm, admit.hash) == (SWAP, "south", THEIRS.hash)
    await worker.says(protocol.SnapshotAdmitted(SWAP))


async def ready(r: Runtime) -> None:
    """South says that it is ready."""
    r.inject(ev.Incoming("south", 5, ms.SwapReady(ID)))
    await saved(r)


async def audited(r: Runtime) -> list[dict[str, Any]]:
    """The lines of its audit log, on disk."""
    await r.audit.flush()
    path = Path(r.config.site.state_dir) / "audit" / AUDIT_FILE
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "save", lambda *_: (_ for _ in ()).throw(LocalError("disk full")))
        yield


# ---------------------------------------------------------------- the dialogue with the worker


async def test_a_swap_goes_through_the_worker_and_is_shown(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        own = r.node.swap.own  # type: ignore[union-attr]
        assert own is not None and own.dice_val == 0.5 and r.store.path(own.hash).exists()
        assert (own.kind, own.round, own.steps) == ("model", 6, 53)
        assert {own.hash, THEIRS.hash} <= r.node.kept_models()
        shown = await service(r).status()
        assert (shown.swap.state, shown.swap.peer, shown.swap.part) == ("open", "south", "mix")
        await ready(r)
        (apply,) = worker.of(protocol.ApplySwap)
        assert (apply.part, apply.weight, apply.hash) == ("mix", pytest.approx(10 / 18), THEIRS.hash)
        assert apply.own == str(r.store.path(own.hash))
        await worker.says(protocol.SwapApplied(SWAP, steps=54))
        assert r.node.swap is None and r.node.count("mixed", "south") == 1 and r.node.info.steps == 54

        status = await service(r).status()
        assert status.swaps.mixed == status.accepted == 1 and status.swap.state == ""
        assert dict(pairs(status))["swaps"] == "1 mixed"
        document = await service(r).exchanges(10)
        (row,) = document.swaps
        assert (row.asker, row.number, row.peer, row.direction) == ("south", 7, "south", "in")
        assert (row.state, row.part, row.reason) == ("applied", "mix", "")
        assert swap_cells(row)[1:5] == ["south 7", "south", "applied", "mix"]
        assert [(x.direction, x.state) for x in document.exchanges if x.hash == THEIRS.hash] == [
            ("in", "merged")
        ]
        shown_metrics = values(sample(r, 0.0, degraded=False))
        assert shown_metrics["gossipseg_swaps_total", "south", "mixed"] == 1
        assert shown_metrics["gossipseg_swaps_total", "south", "dropped"] == 0
        assert shown_metrics["gossipseg_peer_set_aside", "south"] == 0
        (line,) = [x for x in await audited(r) if x["event"] == "swap_applied"]
        assert (line["peer"], line["asker"], line["number"], line["hash"]) == (
            "south",
            "south",
            7,
            THEIRS.hash,
        )


async def test_a_snapshot_that_the_worker_refuses_is_told_with_the_reason(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        r.inject(ev.Incoming("south", 3, offer(r)))
        r.inject(ev.Incoming("south", 4, ms.SwapSnapshot(ID, THEIRS)))
        r.inject(ev.ModelArrived("south", THEIRS))
        await worker.says(protocol.SnapshotAdmitted(SWAP, "norm_exploded", "layer w: 900 of 4"))
        assert r.node.swap is None and r.node.count("swap_dropped") == r.node.count("refused") == 1
        (row,) = (await service(r).exchanges(10)).swaps
        assert (row.state, row.reason) == ("dropped", "norm_exploded")
        (file,) = r.ledger.recent(10)
        assert (file.state, file.reason, file.detail) == ("refused", "norm_exploded", "layer w: 900 of 4")
        assert r.counters.refusals["in", "south", "norm_exploded"] == 1
        lines = {x["event"]: x for x in await audited(r)}
        assert lines["swap_dropped"]["reason"] == "norm_exploded"
        assert (lines["model_refused"]["detail"], lines["model_refused"]["stage"]) == (
            "layer w: 900 of 4",
            "visit",
        )


async def test_a_peer_whose_swaps_did_harm_is_set_aside_before_the_next(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        await ready(r)
        seen: list[ev.Event] = []
        real = r.inject
        monkeypatch.setattr(r, "inject", lambda event: (seen.append(event), real(event))[1])
        await worker.says(protocol.SwapApplied(SWAP, steps=54, frm="south", harm="it raised the loss by 0.2"))
        seen = [event for event in seen if not isinstance(event, ev.Tick)]
        assert seen == [ev.HarmfulPeer("south", "it raised the loss by 0.2"), ev.SwapApplied(ID, "", 54, 0)]
        (note,) = [e for e in r.events.tail(50) if e["event"] == "peer_harmful"]
        assert (note["site"], note["detail"]) == ("south", "it raised the loss by 0.2")


async def test_an_export_that_cannot_be_stored_drops_the_swap(
    swapping: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        r.inject(ev.Incoming("south", 3, offer(r)))
        gone = protocol.Export("/nowhere/swap.safetensors", 8, 3)
        await worker.says(protocol.SnapshotExported(SWAP, gone, 1))
        (row,) = (await service(r).exchanges(10)).swaps
        assert (row.state, row.reason) == ("dropped", "not_stored")


async def test_a_worker_that_comes_again_has_its_order_again_unless_its_checkpoint_holds_the_swap(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        await ready(r)
        r.worker.on_worker_lost("killed", False)
        await worker.says(READY)
        assert len(worker.of(protocol.ApplySwap)) == 2
        r.worker.on_worker_lost("killed", False)
        await worker.says(msgspec.structs.replace(READY, last_swap=SWAP))
        assert len(worker.of(protocol.ApplySwap)) == 2 and r.node.count("mixed") == 1


async def test_a_snapshot_whose_swap_is_over_is_not_sent_when_its_window_opens(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        transfer = PeerCalls.transfer
        pushed: list[str] = []
        ended: list[ev.Event] = []

        async def push(to: str, ref: ModelRef, *_: Any) -> None:
            pushed.append(ref.hash)

        monkeypatch.setattr(r.transport, "push", push)
        await traded(r, worker, tmp_path)
        own = r.node.swap.own  # type: ignore[union-attr]
        assert own is not None
        with monkeypatch.context() as patch:
            patch.setattr(r, "inject", ended.append)
            await transfer(r.calls, fx.StartTransfer(91, "south", own))
            assert pushed == [own.hash] and ended == [ev.TransferDone(91)]
        r.inject(ev.Incoming("south", 5, ms.SwapTold(ID, "dropped", "too_old")))
        monkeypatch.setattr(r, "inject", ended.append)
        await transfer(r.calls, fx.StartTransfer(92, "south", own))
        assert pushed == [own.hash]
        assert ended[1:] == [ev.TransferFailed(92, "cancelled", "the swap is over")]


async def test_a_snapshot_does_not_wait_for_its_window_and_the_swap_is_dropped(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        transfer, closed = PeerCalls.transfer, []  # type: ignore[var-annotated]

        async def window(windows: list[str], timeout_s: float, to: str, waits: Any) -> None:
            closed.append(timeout_s)
            raise PeerUnreachable(to, "window_closed", "waits for the window until 22:00")

        monkeypatch.setattr(outbound, "window_open", window)
        await traded(r, worker, tmp_path)
        swap = r.node.swap
        assert swap is not None and swap.own is not None
        await transfer(r.calls, fx.StartTransfer(91, "south", swap.own))
        assert closed == [0.0]


async def test_outside_of_its_hours_status_says_when_swaps_go_on(
    swapping: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, _):
        r.window("22:00")
        status = await service(r).status()
        assert status.swaps_wait == "none before 22:00, by transfers.windows"
        assert dict(pairs(status))["swaps"] == status.swaps_wait
        assert not [c for c in status.concerns if c.code.startswith("nothing")]
        r.window("")
        assert (await service(r).status()).swaps_wait == ""


async def test_a_decided_swap_at_a_paused_site_waits_and_status_says_so(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        await ready(r)
        assert (await service(r).status()).swaps_wait == ""
        r.pause(True)
        status = await service(r).status()
        assert status.swap.state == "committed"
        assert (
            "one committed with south now (it is decided, and applied once training goes on)"
            in dict(pairs(status))["swaps"]
        )
        r.pause(False)
        await worker.says(protocol.SwapApplied(SWAP, steps=54, ahead=0, frm="south"))
        status = await service(r).status()
        assert status.swaps.mixed == 1 and status.swaps_wait == ""


# ---------------------------------------------------------------- the disk


async def test_a_committed_swap_survives_a_restart_with_its_files(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        own = r.node.swap.own  # type: ignore[union-attr]
        await ready(r)
        state = swapping["north"].folder / "state"
        before = r.node.swap
    snapshot = remembered(StateFile(state / "node.json"), EventLog(tmp_path / "log.jsonl"))
    assert snapshot.swaps is not None and snapshot.swaps.bound is not None
    assert snapshot.swaps.bound == before.bound()  # type: ignore[union-attr]
    again = daemon_of(swapping).runtime
    async with served(again):
        again.inject(ev.Start())
        monkeypatch.setattr(again.calls, "request", nothing)
        assert again.node.swap is not None and again.node.swap.stage.value == "committed"
        assert own is not None and {own.hash, THEIRS.hash} <= again.node.kept_models()
        assert (await service(again).status()).swap.state == "committed"
        second = Worker(again, monkeypatch)
        await second.says(READY)
        (apply,) = second.of(protocol.ApplySwap)
        assert (apply.swap, apply.hash, apply.part) == (SWAP, THEIRS.hash, "mix")


BINDING: list[ms.Request] = [
    ms.SwapOffer(SwapTerms(ID, "f", "c", "north", "south", 1, 1, 1, 1)),
    ms.SwapReady(ID),
    ms.SwapTold(ID, "committed"),
]
HARMLESS: list[ms.Request] = [ms.SwapTold(ID, "open"), ms.SwapTold(ID, "dropped", "too_old")]


async def test_a_site_whose_state_cannot_be_saved_neither_offers_nor_accepts_nor_commits(
    swapping: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(swapping) as (r, _):
        heard: list[ev.Event] = []
        answered: list[ms.Reply] = []
        asked: list[fx.Request] = []

        async def request(effect: fx.Request) -> None:
            asked.append(effect)

        monkeypatch.setattr(r, "inject", heard.append)
        monkeypatch.setattr(r.calls, "request", request)
        monkeypatch.setattr(r.intake, "respond", lambda token, body: answered.append(body))
        replies: list[ms.Reply] = [
            ms.SwapOfferReply("accept", "", BINDING[0].terms),  # type: ignore[union-attr]
            ms.SwapState("committed"),
            ms.SwapState("dropped", "too_old"),
            ms.SwapOfferReply("busy", "busy"),
        ]
        with full_disk(monkeypatch):
            await perform(r, fx.Persist(fx.Snapshot()))
            await perform(r, *(fx.Respond(i, body) for i, body in enumerate(replies)))
            await perform(r, *(fx.Request(i, "south", b, 1.0) for i, b in enumerate((*BINDING, *HARMLESS))))
        assert answered == [
            ms.SwapOfferReply("reject", "not_saved"),
            ms.SwapState("open", "not_saved"),
            *replies[2:],
        ]
        assert [e.id for e in heard if isinstance(e, ev.RequestFailed)] == [0, 1, 2]
        await perform(r, fx.Persist(fx.Snapshot()), *(fx.Respond(9, body) for body in replies[:2]))
        assert answered[-2:] == replies[:2]


async def test_a_committed_swap_is_applied_once_the_state_is_on_disk(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash would leave a model with a swap in it that the site says was dropped."""
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        answered: list[ms.Reply] = []
        monkeypatch.setattr(r.intake, "respond", lambda token, body: answered.append(body))
        with full_disk(monkeypatch):
            await ready(r)
            assert answered == [ms.SwapState("open", "not_saved")]
            assert r.node.swap is not None and worker.of(protocol.ApplySwap) == []
        await worker.says(done(6, steps=60))
        assert len(worker.of(protocol.ApplySwap)) == 1
        r.inject(ev.Incoming("south", 6, ms.SwapReady(ID)))
        await saved(r)
        assert answered[-1] == ms.SwapState("committed")


async def test_a_state_that_could_not_be_saved_is_saved_again_without_anything_new(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full for a moment must not hold a swap until the next round, or for ever."""
    monkeypatch.setattr(runtime, "SAVE_AGAIN_S", 0.01)
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        with full_disk(monkeypatch):
            await ready(r)
            await asyncio.sleep(0.1)
            assert worker.of(protocol.ApplySwap) == [] and "disk full" in r.training.warnings["state"]
        async with asyncio.timeout(10):
            while not worker.of(protocol.ApplySwap):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "state" not in r.training.warnings
        failures = [e for e in r.events.tail(100) if e["event"] == "persist_failed"]
        assert len(failures) == 1, "once for each full disk"


async def test_a_committed_round_lets_models_go_that_nothing_refers_to(
    swapping: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished or paused site stores the rounds of the others, and trains none that would clear up."""
    async with met(swapping, monkeypatch) as (r, _):
        collected: list[set[str]] = []
        monkeypatch.setattr(r.store, "collect", lambda keep, **_: collected.append(keep))
        await perform(r, fx.Note("round_committed", None, "", {}))
        async with asyncio.timeout(10):
            while not collected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert collected == [r.node.kept_models()]


async def test_an_order_that_waited_for_the_disk_is_forgotten_with_its_swap(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        with full_disk(monkeypatch):
            await ready(r)
            await worker.says(protocol.SwapApplied(SWAP, "not_saved", "it was never ordered"))
            assert r.node.swap is None
            (note,) = [e for e in r.events.tail(50) if e["event"] == "swap_not_applied"]
            assert (note["reason"], note["detail"]) == ("not_saved", "it was never ordered")
        await worker.says(done(6, steps=60))
        assert worker.of(protocol.ApplySwap) == []


async def test_every_effect_of_a_swap_has_its_place_in_the_shell(
    swapping: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(swapping) as (r, _):
        worker = Worker(r, monkeypatch)
        theirs, own = model("t"), model("o")
        await perform(
            r,
            fx.ExportSnapshot(ID),
            fx.AdmitSnapshot(ID, "south", theirs),
            fx.ApplySwap(ID, "south", "copy", 1.0, theirs, own),
        )
        kinds = [type(o) for o in worker.orders]
        assert kinds == [protocol.ExportSnapshot, protocol.AdmitSnapshot, protocol.ApplySwap]


# ---------------------------------------------------------------- recordings


async def test_a_swap_replays_from_the_recording(
    swapping: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossipseg.daemon.main.Recorder", functools.partial(Recorder, max_steps=8))
    async with met(swapping, monkeypatch) as (r, worker):
        await traded(r, worker, tmp_path)
        await ready(r)
        assert r.recorder.problem == ""
        replayed = replay.load(r.recorder.text(site="north"))
        steps = list(replayed.steps())
        assert steps and all(step.same for step in steps)
        assert steps[0].number > 0, "it begins in the middle of the swap"
