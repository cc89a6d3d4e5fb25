"""Documents as a daemon in the middle of its work would give them."""

from __future__ import annotations

from gossipseg.wire import documents as doc

HASH = "5f3c" * 16
ID = "AAAAAAA-BBBBBBB-CCCCCCC-DDDDDDD-EEEEEEE-FFFFFFF-GGGGGGG-HHHHHHH"

STATUS = doc.StatusDoc(
    site="north",
    id=ID,
    federation="test",
    version="0.1.0",
    phase="training",
    activity="visit",
    fraction=0.25,
    round=3,
    rounds=10,
    step=25,
    steps_per_round=100,
    loss=0.51234,
    dice_val=0.71,
    dice_test_start=0.1,
    splits=doc.Splits(20, 4, 6),
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

ROUNDS = doc.RoundsDoc(
    exchange="rounds",
    round=8,
    attempt=1,
    coordinator="south",
    leading=False,
    state="waiting",
    reason="for the common model",
    quorum=2,
    deadline_s=95.0,
    committed=7,
    committed_hash=HASH,
    contributors=("north", "south"),
    absent=(doc.RoundRow("west", "left_out", "dead"),),
    sites=(
        doc.RoundRow("north", "delivered"),
        doc.RoundRow("south", "training", "step 25 of 100"),
        doc.RoundRow("west", "left_out", "dead"),
    ),
)
