"""A visitor with one exploded layer, from the real trainer through the real runtime to an operator's eyes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from safetensors.torch import load_file, save_file

from gossipseg.algos.params import GossipAverageParams
from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.effects import InboxEntry
from gossipseg.ctl.exchanges import exchange_cells
from gossipseg.daemon.observe.exchange_table import ExchangeTable
from gossipseg.learn import protocol
from gossipseg.learn.exchange.reception import DETAIL_CHARACTERS
from gossipseg.wire.documents import ExchangesDoc
from tests.core.rig import model
from tests.daemon.harness import READY, files_only, running, settled
from tests.learn.harness import make_spec, make_trainer, write_png_site

LAYER = "network.encoder.0.first.conv.weight"


def refused_by_the_trainer(folder: Path) -> protocol.RoundDone:
    """What the worker reports, over its wire."""
    data = write_png_site(folder / "data")
    algorithm = GossipAverageParams()
    sender = make_trainer(make_spec(data, folder / "s", site="south", algorithm=algorithm))
    tensors = load_file(sender.run_round(protocol.StartRound(1, export=True)).export.path)
    tensors[LAYER] = tensors[LAYER] * 300
    save_file(tensors, folder / "exploded.safetensors")
    receiver = make_trainer(make_spec(data, folder / "n", algorithm=algorithm))
    receiver.run_round(protocol.StartRound(1))
    visit = protocol.Visit(str(folder / "exploded.safetensors"), model().hash, "south", 4, 5)
    told = protocol.decode(protocol.encode(receiver.run_round(protocol.StartRound(2, visit))))
    assert isinstance(told, protocol.RoundDone)
    return told


async def test_layer_and_bound_of_a_refused_visitor_are_shown(tmp_path: Path) -> None:
    done = refused_by_the_trainer(tmp_path)
    with files_only(tmp_path, "north", "south") as files:
        async with running(files) as (r, _):
            r.worker.on_worker_message(READY)
            await settled(r)
            r.node._gossip.inbox.visiting = entry = InboxEntry("south", model(), 0)
            for watcher in (r.ledger, r.audit):
                watcher.event(ev.Incoming("south", 1, ms.Offer(model())))
                watcher.effect(fx.Respond(1, ms.OfferReply("accept")))
                watcher.effect(fx.StartRound(1, entry, False))
            r.worker.on_worker_message(msgspec.structs.replace(done, round=1))
            await settled(r)
            await r.audit.flush()
            (row,) = ExchangesDoc.from_dict(
                json.loads(json.dumps(ExchangesDoc(exchanges=tuple(r.ledger.recent(1))).to_dict()))
            ).exchanges
            assert (row.state, row.reason) == ("refused", "norm_exploded")
            shown = exchange_cells(row)[-1]
            assert shown.startswith(f"norm_exploded: {LAYER}: its norm is ") and shown.endswith("bound 10")
            (event,) = [e for e in r.events.tail(50) if e["event"] == "visit_refused"]
            assert event["detail"] == row.detail
        audited = "".join(
            p.read_text() for p in (files["north"].folder / "state").rglob("audit*") if p.is_file()
        )
        (line,) = [json.loads(x) for x in audited.splitlines() if '"model_refused"' in x]
        assert row.detail in json.dumps(line)


def test_what_is_told_of_a_refusal_is_bounded(tmp_path: Path) -> None:
    data = write_png_site(tmp_path / "data")
    receiver = make_trainer(make_spec(data, tmp_path / "n", algorithm=GossipAverageParams()))
    own = load_file(receiver.run_round(protocol.StartRound(1, export=True)).export.path)
    save_file({**own, "x" * 5000: own[LAYER].clone()}, tmp_path / "odd.safetensors")
    visit = protocol.Visit(str(tmp_path / "odd.safetensors"), "h", "south", 4, 5)
    told = receiver.run_round(protocol.StartRound(2, visit)).visit
    assert told.reason == "schema_mismatch" and len(told.detail) <= DETAIL_CHARACTERS


def test_a_later_state_of_a_row_does_not_keep_an_earlier_detail() -> None:
    ledger = ExchangeTable(lambda: 0.0)
    ledger.event(ev.Incoming("b", 7, ms.Offer(model())))
    ledger.effect(fx.Respond(7, ms.OfferReply("accept")))
    ledger.event(ev.ModelBroken("b", model().hash, "schema_mismatch", "other tensors"))
    assert ledger.recent(1)[0].detail == "other tensors"
    ledger.event(ev.ModelArrived("b", model()))
    assert ledger.recent(1)[0].detail == ""
