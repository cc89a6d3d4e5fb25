"""What a run leaves: figures from status documents and event logs as a daemon writes them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from gossipseg.ctl.testbed import deployed_lines
from gossipseg.store import EventLog, read_events
from gossipseg.testbed import layout, page, plots, report, synthetic
from gossipseg.testbed.run import RunResult, SiteResult
from gossipseg.wire.documents import StatusDoc

BEGAN = 1_795_247_950.0
COUNTS = ("rounds", "cases", "sent", "received", "accepted", "refused", "bytes_out", "bytes_in")
FIGURES = ("dice_test_start", "dice_test", "dice_val")
TEXTS = ("site", "deployed", "deployed_reason")
SITE_SCHEMA = {
    "type": "object",
    "required": [*TEXTS, *COUNTS, *FIGURES],
    "properties": {
        **{key: {"type": "string"} for key in TEXTS},
        **{key: {"type": "integer", "minimum": 0} for key in COUNTS},
        **{key: {"type": ["number", "null"]} for key in FIGURES},
    },
    "additionalProperties": False,
}
REPORT_SCHEMA = {
    "type": "object",
    "required": ["schema", "algorithm", "wall_s", "closed_without", "sites"],
    "properties": {
        "schema": {"const": 1},
        "algorithm": {"enum": ["gcml", "local", "gossip_average"]},
        "wall_s": {"type": "number"},
        "closed_without": {
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "sites": {"type": "array", "items": SITE_SCHEMA, "minItems": 1},
    },
    "additionalProperties": False,
}


def round_finished(t: float, number: int, dice: float | None, **more: Any) -> dict[str, Any]:
    found = {"t": BEGAN + t, "event": "round_finished", "round": number, "steps": 10 * number, "seconds": 3.7}
    return {**found, "loss": 1.5 / number, "terms": {"seg": 1.5 / number}, "dice_val": dice, **more}


def exchange(t: float, event: str, peer: str, model: str, **more: Any) -> dict[str, Any]:
    return {"t": BEGAN + t, "event": event, "site": peer, "hash": model, "bytes": 1_327_888, **more}


NORTH = [
    {"t": BEGAN + 2, "event": "daemon_started", "version": "0.1.0"},
    {"t": BEGAN + 2.1, "event": "member_alive", "site": "valley", "reason": "joined"},
    {"t": BEGAN + 12, "event": "worker_ready", "round": 0, "cases": 48, "device": "cpu"},
    round_finished(16, 1, 0.1),
    round_finished(20, 2, 0.2),
    exchange(20.5, "transfer_done", "valley", "aa", round=2),
    round_finished(24, 3, None),
    {"t": BEGAN + 24.1, "event": "finished", "round": 3},
]
VALLEY = [
    {"t": BEGAN + 2, "event": "daemon_started", "version": "0.1.0"},
    round_finished(15, 1, 0.1),
    exchange(20.5, "model_arrived", "north", "aa", round=2),
    round_finished(21, 2, 0.15),
    exchange(22, "model_arrived", "north", "bb", round=3),
    exchange(22, "model_dropped", "north", "aa", reason="replaced"),
    round_finished(28, 3, 0.3, site="north", visit="merged"),
    exchange(28.1, "visit_merged", "north", "bb", round=3),
    round_finished(30, 2, 0.16),
    round_finished(34, 3, 0.31, site="north", visit="merged"),
]


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    """Two sites; events go through a real event log."""
    status = {
        "north": StatusDoc(
            site="north",
            round=3,
            cases=48,
            dice_test_start=0.04,
            dice_test=0.5,
            sent=1,
            phase="finished",
            deployed="mix",
            deployed_reason="alone 0.4, deployed <0.5>",
        ),
        "valley": StatusDoc(
            site="valley", round=3, cases=6, dice_test_start=0.03, received=2, bytes_in=2_655_776
        ),
    }
    sites = []
    for name, records in (("north", NORTH), ("valley", VALLEY)):
        (tmp_path / name).mkdir()
        log = EventLog(tmp_path / name / "events.jsonl")
        for record in records:
            fields = {k: v for k, v in record.items() if k not in ("t", "event")}
            log.append(record["event"], t=record["t"], **fields)
        log.close()
        events = read_events(tmp_path / name / "events.jsonl", 100)
        state = "finished" if name == "north" else "gone"
        sites.append(SiteResult(name, state, "the daemon ended <badly>", status[name], events))
    return RunResult("gcml", BEGAN, 40.25, sites, exit_code=1)


def test_the_report_has_the_promised_fields_and_no_others(result: RunResult, tmp_path: Path) -> None:
    path = report.write_json(result, tmp_path / "out")
    doc = json.loads(path.read_text())
    jsonschema.validate(doc, REPORT_SCHEMA)
    north, valley = doc["sites"]
    assert (north["dice_test_start"], north["dice_test"], north["sent"]) == (0.04, 0.5, 1)
    assert (valley["dice_test"], valley["received"], valley["bytes_in"]) == (None, 2, 2_655_776)
    assert (doc["wall_s"], doc["algorithm"]) == (40.25, "gcml")


def test_merged_models_are_counted_from_the_event_log(result: RunResult) -> None:
    assert [report.taken_in(site) for site in result.sites] == [0, 2]


def test_rounds_closed_without_a_site_are_told_with_the_reason() -> None:
    def committed(t: float, number: int, absent: dict[str, str]) -> dict[str, Any]:
        common = exchange(t, "round_committed", "north", "cc", round=number, contributors=["north"])
        return {**common, "absent": absent}

    events = [committed(5, 1, {}), committed(9, 2, {"valley": "dead"})]
    arrived = exchange(8, "model_arrived", "valley", "uu", round=2, holds="update")
    run = RunResult("fedavg", BEGAN, 12, [SiteResult("north", "finished", events=[arrived, *events])])
    assert report.closed_without(run) == {2: {"valley": "dead"}}
    assert report.document(run)["closed_without"] == {"2": {"valley": "dead"}}
    assert report.taken_in(run.sites[0]) == 2
    assert [e.outcome for e in report.exchanges(run)] == ["merged"], "an update waits for nobody's visit"


def test_a_site_that_never_answered_is_in_the_report(tmp_path: Path) -> None:
    lost = RunResult("local", BEGAN, 3.0, [SiteResult("north", "gone", "exit code 65")])
    doc = report.document(lost)
    jsonschema.validate(doc, REPORT_SCHEMA)
    assert doc["sites"][0]["rounds"] == 0
    assert [s.name for s in lost.missing] == ["north"]


def test_a_curve_counts_a_repeated_round_once_and_marks_merges(result: RunResult) -> None:
    curve = report.curve(result.sites[1], BEGAN)
    assert curve.rounds == [1, 2, 3]
    assert curve.dice_val == [0.1, 0.16, 0.31]
    assert curve.at_s == [15, 30, 34]
    assert curve.visits == ["", "", "north"]
    north = report.curve(result.sites[0], BEGAN)
    assert np.isnan(north.dice_val[2]), "a round without validation"
    assert north.loss == [1.5, 0.75, 0.5]


def test_exchanges_follow_a_model_by_its_hash(result: RunResult) -> None:
    replaced, taken = report.exchanges(result)
    assert (replaced.sender, replaced.receiver, replaced.outcome) == ("north", "valley", "dropped")
    assert (replaced.arrived_s, replaced.done_s) == (20.5, 22)
    assert (taken.outcome, taken.done_s) == ("merged", pytest.approx(28.1))


def test_swaps_are_shown_where_they_change_the_model() -> None:
    """A copy counts as a mix does; a model that is only given does not, and neither does a dropped swap."""
    events = [
        exchange(10, "model_arrived", "valley", "aa"),
        exchange(12, "swap_applied", "valley", "aa", reason="mix"),
        round_finished(15, 1, 0.1),
        exchange(16, "model_arrived", "valley", "bb"),
        {"t": BEGAN + 17, "event": "swap_dropped", "site": "valley", "reason": "timeout"},
        exchange(18, "swap_applied", "lakeside", "cc", reason="keep"),
        round_finished(20, 2, 0.2),
        exchange(21, "swap_applied", "lakeside", "dd", reason="copy"),
        round_finished(25, 3, 0.3),
    ]
    run = RunResult("gcml", BEGAN, 30, [SiteResult("north", "finished", events=events)])
    assert report.taken_in(run.sites[0]) == 2
    assert report.curve(run.sites[0], BEGAN).visits == ["valley", "", "lakeside"]
    mixed, dropped = report.exchanges(run)
    assert (mixed.sender, mixed.outcome, mixed.done_s) == ("valley", "merged", 12)
    assert (dropped.outcome, dropped.done_s) == ("dropped", 17)


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        ("visit_refused", "refused"),
        ("visit_kept_out", "kept out"),
        ("visit_reverted", "reverted"),
    ],
)
def test_every_verdict_has_its_word(event: str, outcome: str) -> None:
    events = [exchange(1, "model_arrived", "b", "x"), exchange(2, event, "b", "x")]
    run = RunResult("gcml", BEGAN, 5, [SiteResult("a", "finished", events=events)])
    assert [e.outcome for e in report.exchanges(run)] == [outcome]


def test_pictures_are_drawn_for_what_there_is_and_for_nothing(result: RunResult, tmp_path: Path) -> None:
    curves = {s.name: report.curve(s, BEGAN) for s in result.sites}
    learning = plots.learning(curves)
    timeline = plots.timeline(["north", "valley"], report.exchanges(result), result.wall_s)
    for png, empty in (
        (learning, plots.learning({"north": report.Curve()})),
        (timeline, plots.timeline(["north", "valley"], [], 40)),
    ):
        assert colourful(png) > 3 * colourful(empty)
    plots.together(tmp_path / "all.png", [learning, timeline])
    with Image.open(tmp_path / "all.png") as both, Image.open(io.BytesIO(learning)) as one:
        assert both.height > one.height
    assert plots.samples({"north": [], "valley": []}) is None


def colourful(png: bytes) -> int:
    """Pixels that are neither grey nor white."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=2) > 40).sum())


def test_samples_show_the_pictures_of_every_site(tmp_path: Path) -> None:
    paths = {}
    for name, colour in (("north", (250, 0, 0)), ("valley", (0, 0, 250))):
        paths[name] = [tmp_path / f"{name}.png"]
        Image.new("RGB", (300, 120), colour).save(paths[name][0])
    png = plots.samples({**paths, "lakeside": []})
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        seen = {c for _, c in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(250, 0, 0), (0, 0, 250)} <= seen


def test_the_page_needs_nothing_else_and_names_the_missing(result: RunResult, tmp_path: Path) -> None:
    made = layout.init_empty(tmp_path / "bed", 2)
    doc = report.document(result)
    text = page.render(made, result, doc, b"\x89PNG1", b"\x89PNG2", None)
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text
    alone = page.render(made, result, doc, b"\x89PNG1", None, None)
    assert alone.count("data:image/png;base64,") == 1
    assert "No model arrived" in alone
    assert "<script" not in text
    assert "valley did not finish (gone): the daemon ended &lt;badly&gt;" in text
    assert "+0.460" in text
    assert "Which models predict" in text and "north</span>: alone 0.4, deployed &lt;0.5&gt;</li>" in text
    assert synthetic.TASK_NAME in text


def test_the_terminal_says_which_models_predict(result: RunResult) -> None:
    lines = deployed_lines(report.document(result))
    assert lines[-1] == "  north: alone 0.4, deployed <0.5>" and len(lines) == 3
    alone = dataclasses.replace(result, sites=[SiteResult("west", "gone", "")])
    assert deployed_lines(report.document(alone)) == []


def test_the_terminal_table_says_what_is_unknown(result: RunResult) -> None:
    assert report.table_rows(report.document(result)) == [
        ("north", "0.040", "0.500", "+0.460"),
        ("valley", "0.030", "-", "-"),
    ]
