"""The worker protocol: every message survives the line, and a bad line is an error, not a guess."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gossipseg.learn import jobs

MESSAGES: list[jobs.Message] = [
    jobs.Configure({"site": "north", "task": {"labels": {"0": "background"}}}),
    jobs.StartRound(3, jobs.Visit("models/ab.safetensors", "ab", "south", 40, 12), export=True),
    jobs.StartRound(1),
    jobs.SetPaused(True),
    jobs.Stop(),
    jobs.Preparing("reading images", 0.5),
    jobs.Ready(
        round=2,
        steps=40,
        cases=9,
        network_signature="s",
        tensors={"head.weight": ("F16", (2, 3)), "head.bias": ("F32", (2,))},
        parameters=8,
        device="cpu",
        amp="off",
        splits={"training": 9, "validation": 2, "test": 2},
        last_visit="ab",
    ),
    jobs.Progress(1, 4, 20, "visit", 0.2, 0.7, 3.5, "south"),
    jobs.RoundDone(
        round=3,
        steps=60,
        loss=0.5,
        terms={"seg": 0.5, "pull": 0.01},
        dice_val=0.7,
        dice_val_local=[0.7, None],
        seconds=1.5,
        export=jobs.Export("outbox/x.safetensors", 9, 60),
        visit=jobs.VisitDone("ab", "refused", "not_finite", "head.weight", "south"),
        reverted="cd",
    ),
    jobs.Fatal("data", "images/x.png: missing."),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_survive_the_line(message: jobs.Message) -> None:
    line = jobs.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert jobs.decode(line) == message


def test_numbers_json_does_not_know_become_null() -> None:
    line = jobs.encode(jobs.Progress(1, 1, 2, "training", 0.5, float("nan"), float("inf")))
    decoded = jobs.decode(line)
    assert isinstance(decoded, jobs.Progress)
    assert decoded.loss is None and decoded.steps_per_s is None


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b'{"type": "Nothing"}', b'{"type": "SetPaused"}', b'{"type": "Stop", "more": 1}'],
)
def test_a_bad_line_is_an_error(line: bytes) -> None:
    with pytest.raises(jobs.JobError):
        jobs.decode(line)


def test_lines_are_cut_wherever_the_stream_breaks() -> None:
    stream = b"".join(jobs.encode(m) for m in MESSAGES)
    reader = jobs.LineReader()
    lines = [line for i in range(0, len(stream), 7) for line in reader.feed(stream[i : i + 7])]
    assert [jobs.decode(line) for line in lines] == MESSAGES


def test_an_endless_line_is_an_error() -> None:
    with pytest.raises(jobs.JobError):
        jobs.LineReader(max_line_bytes=10).feed(b"x" * 11)


def test_the_protocol_is_free_of_torch() -> None:
    code = (
        "import sys, gossipseg.learn.jobs; sys.exit(any(m in sys.modules for m in ('torch','monai','numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
