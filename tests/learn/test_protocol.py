"""The worker protocol: every message survives the line, and a bad line is an error, not a guess."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from gossipseg.learn import protocol

GOLDEN = Path(__file__).with_name("protocol.golden.jsonl")
"""A line of every kind with every field set, and of some with what they are by default."""

VISIT = protocol.Visit("models/ab.safetensors", "ab", "south", 40, 12, 3)
EXPORT = protocol.Export("outbox/x.safetensors", 9, 60)
SWAP = protocol.Swap("south", 7)
SPENT = protocol.Spent(1.25, 1e-5, 60, 8.0, True)
TENSORS: protocol.WireSchema = {
    "head.weight": ("F16", (2, 3)),
    "head.bias": ("F32", (2,)),
    "scalar": ("F32", ()),
}
MESSAGES: list[protocol.Message] = [
    protocol.Configure(
        {
            "site": "north",
            "task": {"labels": {"0": "background"}, "spacing_mm": [1.0, 1e-7, 1e16]},
            "privacy": None,
        }
    ),
    protocol.StartRound(
        3,
        VISIT,
        export=True,
        start_from=protocol.GlobalModelFile("models/cd.safetensors", "cd", 7),
        settling_in=True,
        finetuning=True,
        listed=["north", "south"],
        ahead=2,
    ),
    protocol.StartRound(1),
    protocol.Aggregate(
        4, 1, [protocol.UpdateFile("north", "models/ab", 9, 60), protocol.UpdateFile("south", "models/cd", 3)]
    ),
    protocol.Aggregate(4, 1, []),
    protocol.SetPaused(True),
    protocol.Stop(),
    protocol.Preparing("reading images", 0.5),
    protocol.Ready(
        round=2,
        steps=40,
        cases=9,
        network_signature="s",
        tensors=TENSORS,
        parameters=8,
        device="cpu",
        amp="off",
        splits={"training": 9, "validation": 2, "test": 2},
        last_visit="ab",
        visits=3,
        dice_val=0.5,
        dice_test_start=0.25,
        dice_test=0.75,
        initial_hash="ef",
        warning="w",
        last_global="cd",
        update_tensors=TENSORS,
        spent=SPENT,
        own_steps=-3,
        deployed="own",
        deployed_reason="why",
        ahead=-2,
        splits_from="the draw",
        last_swap=SWAP,
        personal_tensors=TENSORS,
        personal_refusal="private",
        takes_personal=True,
    ),
    protocol.Ready(0, 0, 0, "", {}, 0, "", "", {}),
    protocol.Progress(1, 4, 20, "training", 0.2, 0.7, 3.5),
    protocol.Progress(1, 4, 20, "training", 0.0, math.nan, math.inf),
    protocol.RoundDone(
        round=3,
        steps=60,
        loss=-math.inf,
        terms={"seg": 0.5, "pull": math.nan},
        dice_val=0.7,
        dice_val_local=[0.7, None, math.nan],
        seconds=1.5,
        export=EXPORT,
        visit=protocol.VisitDone("ab", "refused", "not_finite", "head.weight", "south"),
        reverted="cd",
        reverted_frm="west",
        own_steps=50,
        dice_test=0.5,
        dice_test_start=0.25,
        warning="disk full",
        spent=protocol.Spent(math.inf, 1e-5, 1),
        deployed="shadow",
        deployed_reason="0.7 > 0.6",
        ahead=1,
    ),
    protocol.RoundDone(1, 1, None, {}, None, None, 0.5),
    protocol.AggregateDone(
        round=4,
        attempt=1,
        export=EXPORT,
        contributors=["north"],
        refused={"south": "not_finite"},
        detail="layer é",
        notes={"similarity": [[1.0, math.nan]], "sites": ("a", "b")},
        seconds=2.5,
    ),
    protocol.AggregateDone(4, 1, None, [], {}),
    protocol.ExportSnapshot(SWAP),
    protocol.ExportSnapshot(SWAP, keeps=True),
    protocol.AdmitSnapshot(SWAP, "south", "models/ab.safetensors", "ab"),
    protocol.ApplySwap(
        SWAP, "south", "mix", 0.25, "models/ab.safetensors", "ab", "models/cd.safetensors", 9, 2
    ),
    protocol.ApplySwap(SWAP, "south", "copy", 1.0, "models/ab.safetensors", "ab", None),
    protocol.ApplySwap(SWAP, "south", "mix", 0.5, "a", "ab", "b", gave=True),
    protocol.SnapshotExported(SWAP, EXPORT, 3),
    protocol.SnapshotExported(SWAP, None, reason="not_finite"),
    protocol.SnapshotAdmitted(SWAP, "not_finite", "head.weight"),
    protocol.SwapApplied(SWAP, steps=40, ahead=1, copied=True, deployed="shared", deployed_reason="x"),
    protocol.ExportPersonal(),
    protocol.HoldPersonal([protocol.PersonalFile("south", "models/ab.safetensors", "ab", 10)]),
    protocol.PersonalExported(EXPORT, 10),
    protocol.PersonalExported(None, 10, "not_finite"),
    protocol.PersonalHeld([protocol.PersonalRefused("south", "ab", "not_finite", "head.weight")]),
    protocol.PersonalHeld([], True, True, "mix", "personal 0.50, shared 0.50", 0.5, 0.25, "disk full"),
    protocol.MixChosen("mix", "personal 0.50, shared 0.50", 0.5, 0.25, "disk full"),
    protocol.Fatal("data", "images/M\udcfcller \u2028 \U0001f600.png: missing."),
]


def test_every_message_has_its_line() -> None:
    assert b"".join(protocol.encode(m) for m in MESSAGES) == GOLDEN.read_bytes()
    assert {type(m) for m in MESSAGES} == set(get_args(protocol.Message))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_survive_the_line(message: protocol.Message) -> None:
    line = protocol.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert protocol.encode(protocol.decode(line)) == line
    if b"null" not in line:  # numbers that JSON does not know have become null
        assert protocol.decode(line) == message


def test_tensors_come_back_as_they_went() -> None:
    ready = protocol.decode(
        protocol.encode(protocol.Ready(0, 0, 0, "", TENSORS, 0, "", "", {}, update_tensors=TENSORS))
    )
    assert isinstance(ready, protocol.Ready) and ready.tensors == ready.update_tensors == TENSORS


def test_a_float_of_numpy_is_a_float() -> None:
    done = protocol.RoundDone(1, 1, np.float64(0.5), {"seg": np.float64("nan")}, None, None, np.float64(2))
    assert protocol.decode(protocol.encode(done)) == protocol.RoundDone(
        1, 1, 0.5, {"seg": None}, None, None, 2.0
    )


def test_numbers_json_does_not_know_become_null() -> None:
    line = protocol.encode(protocol.Progress(1, 1, 2, "training", 0.5, float("nan"), float("inf")))
    decoded = protocol.decode(line)
    assert isinstance(decoded, protocol.Progress)
    assert decoded.loss is None and decoded.steps_per_s is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"3",
        b"{}",
        b'{"type": "Nothing"}',
        b'{"type": ["Stop"]}',
        rb'{"type": "\udcff"}',
        b'{"type": "Visit", "path": "p", "hash": "h", "frm": "f"}',
        b'{"type": "SetPaused"}',
        b'{"type": "SetPaused", "paused": 1}',
        b'{"type": "Stop", "more": 1}',
        b'{"type": "Preparing", "activity": "a", "fraction": null}',
        b'{"type": "Fatal", "kind": "bored", "message": ""}',
        b'{"type": "StartRound", "round": 1.5}',
        b'{"type": "StartRound", "round": 1, "visit": {"path": "p", "hash": "h"}}',
        b'{"type": "StartRound", "round": 1, "visit": {"path": "p", "hash": "h", "frm": "f", "more": 1}}',
        b'{"type": "Aggregate", "round": 1, "attempt": 1, "updates": [3]}',
        b'{"type": "Aggregate", "round": 1, "attempt": 1}',
    ],
)
def test_a_bad_line_is_an_error(line: bytes) -> None:
    with pytest.raises(protocol.JobError, match=r"^not JSON: |^not a message: "):
        protocol.decode(line)


def test_the_error_names_the_field_and_shows_the_line() -> None:
    with pytest.raises(protocol.JobError, match=r"`\$\.visit\.frm`.*StartRound"):
        protocol.decode(b'{"type": "StartRound", "round": 1, "visit": {"path": "p", "hash": "h", "frm": 3}}')


def test_lines_are_cut_wherever_the_stream_breaks() -> None:
    stream = b"".join(protocol.encode(m) for m in MESSAGES)
    reader = protocol.LineReader()
    lines = [line for i in range(0, len(stream), 7) for line in reader.feed(stream[i : i + 7])]
    assert b"".join(line + b"\n" for line in lines) == stream


def test_an_endless_line_is_an_error() -> None:
    with pytest.raises(protocol.JobError):
        protocol.LineReader(max_line_bytes=10).feed(b"x" * 11)


def test_the_protocol_is_free_of_torch() -> None:
    code = (
        "import sys, gossipseg.learn.protocol; sys.exit(bool({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
