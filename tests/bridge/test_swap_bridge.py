"""A swap between core, wire and worker: signed terms, snapshots that come, orders and reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossipseg.bridge import orders
from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.params import GossipParams
from gossipseg.core.types import ExchangeId, ModelRef, SwapTerms, terms_payload
from gossipseg.learn import protocol
from tests.bridge.test_intake import Bench, ref, safetensors
from tests.core.rig import PRINT, model

SWAP = GossipParams(exchange="swap", warmup_rounds=0)
ID = ExchangeId("b", 3)
TERMS = SwapTerms(ID, "f", PRINT, "b", "me", own_cases=30, partner_cases=10, steps=50, round=5)
GOOD = b"good".hex()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path, gossip=SWAP)


def path_of(hash_: str) -> Path:
    return Path("/store") / hash_


# ---------------------------------------------------------------- terms


async def test_an_offer_with_terms_that_their_maker_signed_is_accepted(bench: Bench) -> None:
    reply = await bench.intake.on_request("b", ms.SwapOffer(replace(TERMS, signature=GOOD)))
    assert isinstance(reply, ms.SwapOfferReply) and reply.verdict == "accept" and reply.terms is not None
    assert bench.rig.node.swap is not None


@pytest.mark.parametrize("forged", [{}, {"signature": "00"}, {"signature": GOOD, "maker": "nobody"}])
async def test_terms_that_their_maker_did_not_sign_are_refused_and_an_offence(
    bench: Bench, forged: dict[str, Any]
) -> None:
    reply = await bench.intake.on_request("b", ms.SwapOffer(replace(TERMS, **forged)))
    assert reply == ms.SwapOfferReply("reject", "terms_forged")
    assert bench.rig.node.swap is None and bench.rig.node.count("offences", "b") == 1


async def test_what_is_verified_is_all_that_was_signed(bench: Bench) -> None:
    seen: list[tuple[str, bytes, bytes]] = []
    bench.verifier.verify = lambda *args: seen.append(args) or True  # type: ignore[method-assign,func-returns-value]
    bench.intake.verified("b", ms.SwapOffer(replace(TERMS, signature="0aff")))
    assert seen == [("b", terms_payload(TERMS), b"\x0a\xff")]


async def test_the_terms_in_an_answer_are_verified_too(bench: Bench) -> None:
    told = ms.SwapOfferReply("accept", "", replace(TERMS, signature="00"))
    heard = bench.intake.verified("b", told)
    assert heard.terms is not None and heard.terms.fault == "terms_forged"
    heard = bench.intake.verified("b", replace(told, terms=replace(TERMS, signature=GOOD)))
    assert heard.terms is not None and heard.terms.fault == ""


# ---------------------------------------------------------------- the snapshot that comes


async def opened(bench: Bench, data: bytes, **changes: Any) -> ModelRef:
    await bench.intake.on_request("b", ms.SwapOffer(replace(TERMS, signature=GOOD)))
    snapshot = ref(data, **changes)
    assert await bench.intake.on_request("b", ms.SwapSnapshot(ID, snapshot)) == ms.SwapSnapshotReply("accept")
    return snapshot


async def test_a_partners_snapshot_is_stored_and_given_to_the_worker(bench: Bench) -> None:
    data = safetensors()
    snapshot = await opened(bench, data)
    await bench.push(snapshot, data)
    assert bench.store.path(snapshot.hash).read_bytes() == data
    assert bench.rig.of(fx.AdmitSnapshot) == [fx.AdmitSnapshot(ID, "b", snapshot)]
    assert snapshot.hash in bench.rig.node.kept_models(), "garbage collection must leave it"


async def test_a_snapshot_that_was_not_announced_is_not_taken(bench: Bench) -> None:
    data = safetensors()
    assert await bench.refused(ref(data), data) == "not_offered"


@pytest.mark.parametrize(
    ("data", "reason"),
    [(safetensors(shape=(20, 20)), "schema_mismatch"), (b"\xff" * 500, "unreadable")],
    ids=["another network's", "no model"],
)
async def test_a_snapshot_whose_header_is_wrong_drops_the_swap(
    bench: Bench, data: bytes, reason: str
) -> None:
    snapshot = await opened(bench, data)
    assert await bench.refused(snapshot, data) == reason
    assert bench.rig.node.swap is None and not bench.store.path(snapshot.hash).exists()
    assert bench.rig.node.count("swap_dropped") == 1 and bench.rig.node.count("offences", "b") == 1


async def test_a_snapshot_that_is_cut_off_leaves_the_swap_open(bench: Bench) -> None:
    data = safetensors()
    snapshot = await opened(bench, data)
    await bench.refused(snapshot, data[:100])
    assert bench.rig.node.swap is not None
    await bench.push(snapshot, data)
    assert bench.rig.of(fx.AdmitSnapshot)


# ---------------------------------------------------------------- orders and reports


def test_orders_name_the_swap_and_the_files() -> None:
    theirs, own = model("theirs", round=7, steps=900), model("own")
    swap = protocol.Swap("b", 3)
    assert orders.swap_order(fx.ExportSnapshot(ID), path_of) == protocol.ExportSnapshot(swap)
    kept = fx.ExportSnapshot(ID, keeps=True)
    assert orders.swap_order(kept, path_of) == protocol.ExportSnapshot(swap, keeps=True)
    assert orders.swap_order(fx.AdmitSnapshot(ID, "b", theirs), path_of) == protocol.AdmitSnapshot(
        swap, "b", f"/store/{theirs.hash}", theirs.hash
    )
    files = (f"/store/{theirs.hash}", theirs.hash)
    mix = fx.ApplySwap(ID, "b", "mix", 0.75, theirs, own, gave=True)
    assert orders.swap_order(mix, path_of) == protocol.ApplySwap(
        swap, "b", "mix", 0.75, *files, f"/store/{own.hash}", 900, 7, gave=True
    )
    copy = fx.ApplySwap(ID, "b", "copy", 1.0, theirs, None)
    assert orders.swap_order(copy, path_of) == protocol.ApplySwap(
        swap, "b", "copy", 1.0, *files, None, 900, 7
    )


def test_reports_become_events() -> None:
    swap, export = protocol.Swap("b", 3), protocol.Export("outbox/x", 10, 50, 0.5)
    stored = model("own")
    assert orders.snapshot_exported(
        protocol.SnapshotExported(swap, export, 5), stored
    ) == ev.SnapshotExported(ID, replace(stored, dice_val=0.5))
    for report, reason in (
        (protocol.SnapshotExported(swap, None, 5, "not_finite"), "not_finite"),
        (protocol.SnapshotExported(swap, export, 5), "not_stored"),
    ):
        assert orders.snapshot_exported(report, None) == ev.SnapshotExported(ID, None, reason)
    assert orders.snapshot_admitted(protocol.SnapshotAdmitted(swap)) == ev.SnapshotAdmitted(ID)
    refused = protocol.SnapshotAdmitted(swap, "not_finite", "layer w")
    assert orders.snapshot_admitted(refused) == ev.SnapshotAdmitted(ID, "not_finite", "layer w")
    applied = protocol.SwapApplied(swap, steps=90, ahead=-1)
    assert orders.swap_applied(applied) == ev.SwapApplied(ID, "", 90, -1)
    failed = protocol.SwapApplied(swap, "not_saved", "disk full", 90, 4)
    assert orders.swap_applied(failed) == ev.SwapApplied(ID, "not_saved")


def test_harm_is_told_of_the_partner() -> None:
    swap = protocol.Swap("b", 3)
    assert orders.harmful_peer(protocol.SwapApplied(swap, frm="b")) is None
    assert orders.harmful_peer(protocol.SwapApplied(swap, frm="b", harm="0.2")) == ev.HarmfulPeer("b", "0.2")
    assert orders.harmful_peer(protocol.SwapApplied(swap, "not_saved", frm="b", harm="0.2")) is None


def test_a_worker_that_is_ready_says_which_swap_its_checkpoint_holds() -> None:
    ready = protocol.Ready(
        4, 40, 8, "net", {}, 1, "cpu", "no", {"training": 8}, last_swap=protocol.Swap("b", 3)
    )
    assert orders.worker_ready(ready, ()).last_swap == ID
