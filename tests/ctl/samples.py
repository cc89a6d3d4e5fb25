"""Documents as a daemon in the middle of its work would give them."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.rounds.status import RoundsView
from gossipseg.core.types import UpdateTally
from gossipseg.daemon.control.round_documents import rounds_doc, under_way
from gossipseg.wire import documents as doc
from tests.core.rig import model
from tests.core.rounds_bench import bench, common, delivers, leads, prepare, trained, view, with_round_1

HASH = "5f3c" * 16
ID = "AAAAAAA-BBBBBBB-CCCCCCC-DDDDDDD-EEEEEEE-FFFFFFF-GGGGGGG-HHHHHHH"

STATUS = doc.StatusDoc(
    site="north",
    id=ID,
    federation="test",
    version="0.1.0",
    phase="training",
    activity="training",
    fraction=0.25,
    round=3,
    rounds=10,
    step=25,
    steps_per_round=100,
    loss=0.51234,
    dice_val=0.71,
    dice_test_start=0.1,
    splits=doc.SplitCounts(20, 4, 6),
    splits_from="drawn from the seed, kept in /s/splits.json",
    cases=20,
    algorithm="gcml",
    device="cpu",
    members=doc.MemberCounts(alive=2, dead=1),
    sent=4,
    received=3,
    accepted=2,
    refused=1,
    bytes_out=12_345_678,
    bytes_in=2_000,
    uptime_s=4000,
    contract="abcd",
    control="/run/control.sock",
    listen="0.0.0.0:7443",
    worker=doc.WorkerStatus("training", 4711, 2, ""),
    disk_free_bytes=50 * 10**9,
    certificate_days_left=3000.0,
    discovery=doc.DiscoveryStatus(foreign=("federation other at 10.0.0.9",)),
)
PEERS = doc.PeersDoc(
    (
        doc.PeerRow(
            "south", ID, "10.0.0.2:7443", "alive", "", 4, 31, "training", 3.2, 0.42, 4, 3, 10**7, 2 * 10**6
        ),
        doc.PeerRow("west", ID, "10.0.0.3:7443", "dead", "no answer for 21 s", 2, 9, "training", 95.0, 12.0),
        doc.PeerRow("east", ID, "10.0.0.4:7443", "refused", "task.channels: 3 here, 1 there"),
        doc.PeerRow("far", "", "10.0.0.5:7443"),
    )
)


# Of rounds: what the daemon's own code makes of a core on the bench. This site is `me`, the others b and z.


def led() -> RoundsView:
    """Round 1, led here: b has delivered, z still trains."""
    rig = trained()
    first, second = leads(rig)
    delivers(rig, first)
    rig.answer(second, ms.PrepareReply(True, 0, waiting_for="training"))
    return view(rig)


def followed(tally: UpdateTally | None) -> RoundsView:
    """Round 2, led by z, which told this 4 seconds ago; None: it has not asked yet."""
    rig = bench(ready=False, snapshot=with_round_1())
    rig.ready(round=2, steps=20, last_global=common().hash)
    if tally is not None:
        rig.round_done(model("mine", round=3))
        rig.asks("z", replace(prepare(0, round=2), tally=tally))
    rig.do(ev.Tick(), at=rig.now + 4)
    return view(rig)


LED = led()
FOLLOWED = followed(UpdateTally(95_000, ("me", "z"), (("b", "no_answer"),)))
UNTOLD = followed(None)


def rounds(seen: RoundsView) -> doc.RoundsDoc:
    return rounds_doc("rounds", seen, None)


def status_of(seen: RoundsView) -> doc.StatusDoc:
    """STATUS, under a coordinator."""
    coordinated = {"committed": seen.committed, "coordinator": seen.coordinator or ""}
    return msgspec.structs.replace(STATUS, exchange="rounds", under_way=under_way(seen), **coordinated)
