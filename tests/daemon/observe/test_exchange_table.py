"""The table of exchanges: what becomes of a row as the core's events and effects go by."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.effects import InboxEntry
from gossipseg.core.types import ExchangeId
from gossipseg.daemon.observe import exchange_table as module
from gossipseg.daemon.observe.exchange_table import ExchangeTable
from tests.core.rig import OPEN, model

ACCEPT, BUSY = ms.OfferReply("accept"), ms.OfferReply("busy", "busy")


@pytest.fixture
def ledger() -> ExchangeTable:
    ticks = iter(range(10_000))
    return ExchangeTable(lambda: float(next(ticks)))


def row(ledger: ExchangeTable) -> Any:
    return ledger.recent(1)[0]


def offer(ledger: ExchangeTable, id: int = 1, to: str = "b") -> None:
    ledger.effect(fx.Request(id, to, ms.Offer(model()), 10.0))


def arrive(ledger: ExchangeTable) -> None:
    ledger.event(ev.Incoming("b", 7, ms.Offer(model())))
    ledger.effect(fx.Respond(7, ACCEPT))
    ledger.event(ev.ModelArrived("b", model()))


def visit(ledger: ExchangeTable) -> None:
    ledger.effect(fx.StartRound(6, InboxEntry("b", model(), 5), False))


def test_a_model_on_its_way_out(ledger: ExchangeTable) -> None:
    offer(ledger)
    assert (row(ledger).direction, row(ledger).peer, row(ledger).state) == ("out", "b", "offered")
    ledger.event(ev.Reply(1, ACCEPT, 0.1))
    assert row(ledger).state == "accepted"
    ledger.effect(fx.StartTransfer(2, "b", model()))
    ledger.moved("out", "b", model().hash, 0.5)
    assert (row(ledger).state, row(ledger).fraction) == ("sending", 0.5)
    ledger.event(ev.TransferDone(2))
    assert (row(ledger).state, row(ledger).fraction) == ("sent", 1.0)
    assert ledger.open == 0 and len(ledger.rows) == 1


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (ev.Reply(1, BUSY, 0.1), "busy", "busy"),
        (ev.Reply(1, ms.OfferReply("reject", "stale"), 0.1), "rejected", "stale"),
        (ev.RequestFailed(1, "timeout"), "failed", "timeout"),
    ],
)
def test_an_offer_that_leads_nowhere(
    ledger: ExchangeTable, outcome: ev.Event, state: str, reason: str
) -> None:
    offer(ledger)
    ledger.event(outcome)
    assert (row(ledger).state, row(ledger).reason) == (state, reason) and ledger.open == 0


def test_a_broken_transfer(ledger: ExchangeTable) -> None:
    ledger.effect(fx.StartTransfer(2, "b", model()))
    ledger.event(ev.TransferFailed(2, "timeout"))
    assert (row(ledger).state, row(ledger).reason) == ("failed", "timeout") and ledger.open == 0


def test_a_visit_from_the_offer_to_the_merge(ledger: ExchangeTable) -> None:
    ledger.event(ev.WorkerReady(5, 50, 10, OPEN, dice_val=0.4))
    arrive(ledger)
    assert row(ledger).state == "stored" and ledger.open == 0
    visit(ledger)
    assert (row(ledger).state, row(ledger).dice_before) == ("visiting", 0.4)
    ledger.event(ev.RoundFinished(6, 60, 0.5, visit=ev.VisitResult(model().hash, "merged")))
    assert (row(ledger).state, row(ledger).dice_before, row(ledger).dice_after) == ("merged", 0.4, 0.5)
    ledger.event(ev.RoundFinished(7, 70, 0.3, reverted=model().hash))
    assert row(ledger).state == "reverted"


def test_a_visit_cut_off_by_the_workers_death_waits_again(ledger: ExchangeTable) -> None:
    arrive(ledger)
    visit(ledger)
    ledger.event(ev.WorkerLost("oom"))
    assert row(ledger).state == "stored"


def test_a_model_dropped_or_broken(ledger: ExchangeTable) -> None:
    arrive(ledger)
    ledger.effect(fx.Note("model_dropped", "b", "too_old", {"hash": model().hash}))
    assert (row(ledger).state, row(ledger).reason) == ("dropped", "too_old")
    ledger.event(ev.ModelBroken("b", model().hash, "hash_mismatch"))
    assert (row(ledger).state, row(ledger).reason) == ("refused", "hash_mismatch")


SWAP = ExchangeId("b", 3)
NAMED = {"asker": "b", "number": 3}


def announce(ledger: ExchangeTable, reply: ms.SwapSnapshotReply) -> None:
    ledger.event(ev.Incoming("b", 7, ms.SwapSnapshot(SWAP, model())))
    ledger.effect(fx.Respond(7, reply))


def test_a_snapshot_on_its_way_out(ledger: ExchangeTable) -> None:
    ledger.effect(fx.Request(1, "b", ms.SwapSnapshot(SWAP, model()), 10.0))
    assert (row(ledger).direction, row(ledger).state) == ("out", "offered")
    ledger.event(ev.Reply(1, ms.SwapSnapshotReply("wait", "not_opened"), 0.1))
    assert (row(ledger).state, row(ledger).reason) == ("waiting", "not_opened") and ledger.open == 0
    ledger.effect(fx.Request(2, "b", ms.SwapSnapshot(SWAP, model()), 10.0))
    ledger.event(ev.Reply(2, ms.SwapSnapshotReply("accept"), 0.1))
    ledger.effect(fx.StartTransfer(3, "b", model()))
    ledger.event(ev.TransferDone(3))
    assert (row(ledger).state, len(ledger.rows)) == ("sent", 1)


def test_a_snapshot_from_its_announcement_to_the_mix(ledger: ExchangeTable) -> None:
    announce(ledger, ms.SwapSnapshotReply("accept"))
    assert (row(ledger).direction, row(ledger).state) == ("in", "accepted") and ledger.open == 0
    ledger.event(ev.ModelArrived("b", model()))
    announce(ledger, ms.SwapSnapshotReply("here"))
    assert row(ledger).state == "stored", "it was only announced once more"
    ledger.effect(fx.Note("swap_applied", "b", "mix", {**NAMED, "hash": model().hash}))
    assert row(ledger).state == "merged"


@pytest.mark.parametrize("note", ["swap_dropped", "swap_in_doubt", "swap_lost"])
def test_a_snapshot_of_a_swap_that_came_to_nothing(ledger: ExchangeTable, note: str) -> None:
    announce(ledger, ms.SwapSnapshotReply("accept"))
    ledger.event(ev.ModelArrived("b", model()))
    ledger.effect(fx.Note(note, "b", "too_old", NAMED))
    assert (row(ledger).state, row(ledger).reason) == ("dropped", "too_old")


def test_a_snapshot_that_is_refused_keeps_its_reason(ledger: ExchangeTable) -> None:
    announce(ledger, ms.SwapSnapshotReply("accept"))
    ledger.event(ev.SnapshotAdmitted(SWAP, "not_finite", "layer w"))
    ledger.effect(fx.Note("swap_dropped", "b", "not_finite", NAMED))
    assert (row(ledger).state, row(ledger).reason, row(ledger).detail) == ("refused", "not_finite", "layer w")
    announce(ledger, ms.SwapSnapshotReply("reject", "no_such_swap"))
    assert row(ledger).state == "refused"


def test_a_snapshot_that_nobody_waits_for(ledger: ExchangeTable) -> None:
    announce(ledger, ms.SwapSnapshotReply("reject", "no_such_swap"))
    assert (row(ledger).state, row(ledger).reason) == ("rejected", "no_such_swap")


def test_rows_are_bounded_and_the_newest_come_first(
    ledger: ExchangeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    for i, to in enumerate("bcdef"):
        offer(ledger, i, to)
    assert [r.peer for r in ledger.recent(0)] == ["f", "e", "d"]
    assert [r.peer for r in ledger.recent(1)] == ["f"]
    ledger.event(ev.RequestFailed(0, "timeout"))  # its row is gone already
    assert len(ledger.rows) == 3


def test_a_fetched_file_has_a_row_and_a_question_has_none(ledger: ExchangeTable) -> None:
    common = dataclasses.replace(model(), kind="global")
    fetch = ms.Fetch("run", "sites", "global", 1, 0, common.hash)
    ledger.effect(fx.Request(1, "b", dataclasses.replace(fetch, hash=""), 1.0))
    ledger.event(ev.Reply(1, ms.FetchReply("accept", model=common), 0.1))
    assert ledger.recent(9) == []
    ledger.effect(fx.Request(2, "b", fetch, 1.0))
    ledger.event(ev.Reply(2, ms.FetchReply("accept", model=common), 0.1))
    assert (row(ledger).state, row(ledger).direction, row(ledger).holds) == ("accepted", "in", "global")
    ledger.event(ev.ModelArrived("b", common))
    assert row(ledger).state == "stored"
