"""What the audit log says of the core's events and effects, and what becomes of it when the disk is full."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.daemon.observe import audit as module
from gossipseg.daemon.observe.audit import Audit
from gossipseg.errors import DiskFull
from gossipseg.store.auditlog import AuditLog
from gossipseg.store.auditverify import read_audit, verify_audit
from tests.core.rig import OPEN, model


class Rig:
    """An audit log with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 100.0
        self.warnings: dict[str, str] = {}
        self.log = AuditLog(folder)
        self.audit = Audit(self.log, lambda: self.now, self.warnings.__setitem__)

    def note(self, name: str, reason: str = "", site: str | None = "b", **detail: Any) -> None:
        self.audit.effect(fx.Note(name, site, reason, detail))

    async def lines(self) -> list[dict[str, Any]]:
        await self.audit.flush()
        kept = ("event", "peer", "hash", "kind", "round", "reason", "stage", "dice_before", "dice_after")
        return [{k: r[k] for k in kept if k in r} for r in read_audit(self.folder)]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_a_visit_with_what_it_did_to_dice(rig: Rig) -> None:
    ref = model()
    rig.audit.event(ev.WorkerReady(5, 50, 10, OPEN, dice_val=0.4))
    rig.audit.event(ev.Incoming("b", 7, ms.Offer(ref)))
    rig.note("model_arrived", hash=ref.hash, bytes=9, round=5)
    rig.audit.event(ev.RoundFinished(6, 60, 0.5, visit=ev.VisitResult(ref.hash, "merged")))
    rig.note("visit_merged", hash=ref.hash, round=5)
    rig.audit.event(ev.RoundFinished(7, 70, 0.3, reverted=ref.hash))
    rig.note("visit_reverted", "validation", hash=ref.hash)
    arrived, merged, reverted = await rig.lines()
    assert arrived["event"] == "model_received" and (arrived["peer"], arrived["hash"]) == ("b", ref.hash)
    assert merged == {
        "event": "model_merged",
        "peer": "b",
        "hash": ref.hash,
        "kind": "model",
        "round": 5,
        "dice_before": 0.4,
        "dice_after": 0.5,
    }
    assert (reverted["event"], reverted["reason"]) == ("model_reverted", "validation")
    assert (reverted["dice_before"], reverted["dice_after"]) == (0.5, 0.3)


async def test_one_peer_cannot_speak_for_the_model_of_another(rig: Rig) -> None:
    ref = model()
    rig.audit.event(ev.Incoming("b", 7, ms.Offer(ref)))
    rig.audit.event(ev.Incoming("c", 8, ms.Offer(dataclasses.replace(ref, round=999))))
    for i in range(5000):
        rig.audit.event(ev.Incoming("c", 9, ms.Offer(model(str(i)))))
    rig.note("visit_kept_out", "not_finite", hash=ref.hash)
    (line,) = await rig.lines()
    assert (line["peer"], line["round"], line["kind"]) == ("b", ref.round, ref.kind)


async def test_a_common_model_is_merged_by_the_round_that_begins_with_it(rig: Rig) -> None:
    common = dataclasses.replace(model(), kind="global")
    rig.audit.event(ev.WorkerReady(5, 50, 10, OPEN, dice_val=0.4))
    rig.audit.effect(fx.StartRound(6, None, False, common))
    rig.audit.event(ev.WorkerLost("killed"))  # that round never ended
    rig.audit.effect(fx.StartRound(6, None, False, common))
    rig.audit.event(ev.RoundFinished(6, 60, 0.45))
    rig.audit.event(ev.Aggregated(6, 0, common, ("a", "b"), (("c", "not_finite"),)))
    merged, refused = await rig.lines()
    assert (merged["event"], merged["kind"], merged["dice_before"], merged["dice_after"]) == (
        "model_merged",
        "global",
        0.4,
        0.45,
    )
    assert (refused["event"], refused["peer"], refused["reason"]) == ("model_refused", "c", "not_finite")


@pytest.mark.parametrize("note", ["offer_in_rejected", "model_broken", "visit_refused"])
async def test_every_refusal_has_its_stage_and_reason(rig: Rig, note: str) -> None:
    rig.note(note, "schema_mismatch", hash="ab")
    (line,) = await rig.lines()
    assert (line["event"], line["reason"], line["peer"]) == ("model_refused", "schema_mismatch", "b")
    assert line["stage"] in ("offer", "arrival", "visit")


async def test_what_is_no_exchange_of_models_is_left_out(rig: Rig) -> None:
    rig.note("offer_in_busy", "busy", hash="ab")
    rig.note("model_dropped", "nobody_to_send_to", None, hash="ab")
    rig.audit.note("worker_ready", {})
    rig.audit.note("config_reloaded", {})
    assert [line["event"] for line in await rig.lines()] == ["config_reloaded"]


async def test_a_flood_of_offers_is_counted_and_does_not_fill_the_disk(rig: Rig) -> None:
    for i in range(500):
        rig.note("offer_in_rejected", "too_large", hash=str(i))
    rig.note("offer_in_rejected", "stale", hash="x")
    assert len(await rig.lines()) == module.FOLD_AFTER + 1
    rig.now += module.FOLD_S
    rig.note("offer_in_rejected", "too_large", hash="y")
    rig.note("offer_in_rejected", "too_large", hash="z")
    await rig.audit.close()
    told = [r for r in read_audit(rig.folder) if r.get("more")]
    assert [r["more"] for r in told] == [500 - module.FOLD_AFTER]


async def test_a_flood_of_forged_records_is_counted_whatever_its_words(rig: Rig) -> None:
    for i in range(500):
        rig.audit.note("record_forged", {"site": "b", "reason": f"AliveRecord about c and {i} more"})
        rig.note("peer_refused", f"training.lr: 0.003 here, 0.{i} there", site="c")
    await rig.audit.close()
    lines = list(read_audit(rig.folder))
    assert len(lines) == 2 * (module.FOLD_AFTER + 1)
    told = {(r["event"], r["peer"]): r["more"] for r in lines if "more" in r}
    assert told == dict.fromkeys([("record_forged", "b"), ("peer_refused", "c")], 500 - module.FOLD_AFTER), (
        "folded lines are counted"
    )


async def test_kinds_of_the_past_are_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FOLDS", 50)
    for i in range(500):
        rig.now += module.FOLD_S / 10
        rig.note("offer_in_rejected", f"reason {i}", hash="x")
    assert rig.audit.kinds <= 51
    assert len(await rig.lines()) == 500


async def test_a_clock_that_goes_back_hides_no_refusals(rig: Rig) -> None:
    for _ in range(30):
        rig.note("offer_in_rejected", "too_large", hash="x")
    rig.now -= 86_400
    rig.note("offer_in_rejected", "too_large", hash="y")
    lines = await rig.lines()
    assert lines[-1]["hash"] == "y" and len(lines) == module.FOLD_AFTER + 1


async def test_a_full_disk_is_a_warning_and_the_lines_come_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    real = rig.log.append

    def full(_: Any) -> None:
        raise DiskFull("audit.jsonl: the disk is full")

    monkeypatch.setattr(rig.log, "append", full)
    for i in range(5):
        rig.note("transfer_done", hash=str(i))
    await rig.audit.flush()
    assert "disk is full" in rig.warnings["audit"] and rig.audit.lost == 2
    monkeypatch.setattr(rig.log, "append", real)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    writing = asyncio.create_task(rig.audit.run())
    async with asyncio.timeout(10):
        while rig.warnings["audit"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    writing.cancel()
    records = list(read_audit(rig.folder))
    assert [r["event"] for r in records] == ["model_sent"] * 3 + ["audit_gap"] and records[-1]["lines"] == 2
    assert verify_audit(rig.folder).flaws == ()


async def test_lines_that_are_being_written_at_the_end_are_written_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, real = threading.Event(), threading.Event(), rig.log.append

    def slow(lines: Any) -> None:
        begun.set()
        assert go_on.wait(10)
        real(lines)

    monkeypatch.setattr(rig.log, "append", slow)
    writing = asyncio.create_task(rig.audit.run())
    rig.note("transfer_done", hash="1")
    await asyncio.to_thread(begun.wait, 10)
    rig.note("transfer_done", hash="2")
    closing = asyncio.create_task(rig.audit.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    writing.cancel()
    assert [r["hash"] for r in read_audit(rig.folder)] == ["1", "2"]
    assert verify_audit(rig.folder).flaws == ()
