"""The live table and the plain lines, from documents and events as daemons give them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gossipseg.testbed import live
from gossipseg.testbed.live import SiteView
from gossipseg.wire.documents import MemberCounts, StatusDoc

TRAINING = StatusDoc(
    site="north",
    phase="training",
    activity="validation",
    fraction=0.5,
    round=4,
    rounds=12,
    step=20,
    steps_per_round=40,
    loss=0.4321,
    dice_val=0.5678,
    sent=3,
    received=2,
    accepted=1,
    refused=0,
    bytes_out=4_000_000,
    bytes_in=2_700,
    members=MemberCounts(alive=1, suspect=1),
)


def drawn(*sites: SiteView) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    console.print(live.table(sites, "a title"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_every_figure_of_a_site() -> None:
    text = drawn(SiteView("north", TRAINING, "running"), SiteView("valley"))
    for part in (
        "a title",
        "north",
        "1 alive, 1 suspect",
        "4/12",
        "20/40",
        "0.432",
        "0.568",
        "4.0 MB",
        "2.7 kB",
        "validation",
        "valley",
        "starting",
    ):
        assert part in text, text


def test_the_table_says_why_a_site_is_gone() -> None:
    assert "gone exit code 65" in drawn(SiteView("valley", None, "gone", "exit code 65"))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"event": "worker_ready", "cases": 6, "device": "cpu"}, "ready, 6 training cases, cpu"),
        (
            {"event": "round_finished", "round": 3, "loss": 0.5, "dice_val": 0.25},
            "round 3, loss 0.500, validation Dice 0.250",
        ),
        (
            {"event": "round_finished", "round": 4, "site": "north", "visit": "kept_out", "dice_test": 0.5},
            "round 4, rejected north's model, test Dice 0.500",
        ),
        ({"event": "transfer_done", "site": "north"}, "sent its model to north"),
        ({"event": "transfer_done", "site": "north", "holds": "update"}, "sent its update to north"),
        ({"event": "transfer_done", "site": "north", "holds": "global"}, "sent the global model to north"),
        ({"event": "round_led", "round": 3, "attempt": 1}, "leads round 3, attempt 1"),
        (
            {"event": "round_committed", "round": 3, "contributors": ["a", "b"], "absent": {"c": "dead"}},
            "round 3 is closed, with a, b; without c (dead)",
        ),
        ({"event": "round_alone", "reason": "no quorum"}, "trains alone (no quorum)"),
        ({"event": "member_dead", "site": "north"}, "north is dead"),
        (
            {"event": "peer_refused", "site": "north", "reason": "contract: task.channels"},
            "exchanges nothing with north (contract: task.channels)",
        ),
        ({"event": "worker_lost", "reason": "killed"}, "lost its training process (killed)"),
        ({"event": "swap_applied", "site": "north", "reason": "mix"}, "mixed in north's model"),
        ({"event": "swap_applied", "site": "north", "reason": "copy"}, "took over north's model"),
        ({"event": "swap_applied", "site": "north", "reason": "keep"}, None),
        ({"event": "offer_sent", "site": "north"}, None),
        ({"event": "something_new"}, None),
        ({}, None),
    ],
)
def test_events_in_words(record: dict[str, Any], words: str | None) -> None:
    assert live.sentence(record) == words


def test_plain_lines_carry_the_time_and_say_a_death_once() -> None:
    written: list[str] = []
    now = [100.0]
    with live.PlainLines(written.append, lambda: now[0]) as lines:
        now[0] = 112.5
        lines.news("north", {"event": "finished"})
        lines.news("north", {"event": "offer_sent", "site": "valley"})
        gone = SiteView("valley", None, "gone", "exit code 1")
        lines.update([gone])
        lines.update([gone])
    assert written == ["  12.5 s  north: finished", "  12.5 s  valley: gone: exit code 1"]


def test_a_pipe_gets_lines_and_a_quiet_run_nothing() -> None:
    assert isinstance(live.make_display("t"), live.PlainLines)
    assert isinstance(live.make_display("t", quiet=True), live.Quiet)


def test_the_live_table_ends_with_the_last_state_and_the_news() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with live.LiveTable("three hospitals", console) as display:
        display.update([SiteView("north", TRAINING, "running")])
        display.news("north", {"event": "transfer_done", "site": "valley"})
        display.news("north", {"event": "round_finished", "round": 1, "loss": 1.0})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "three hospitals" in text
    assert "north: sent its model to valley" in text
    assert "round 1, loss" not in text, "the table shows rounds; only exchanges are news"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_327_888, "1.3 MB"), (5_000_000_000, "5.0 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert live.size(count) == text
