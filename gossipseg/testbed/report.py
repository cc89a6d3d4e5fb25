"""The results of a run for people and programs: report.json, report.png, report.html."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gossipseg import config
from gossipseg.children import environment, python_module
from gossipseg.errors import GossipsegError, LocalError
from gossipseg.learn.params import WorkerSpec
from gossipseg.store import atomic_write
from gossipseg.testbed.curves import Curve, Exchange
from gossipseg.testbed.layout import Layout, SiteFolder
from gossipseg.testbed.run import RunResult, SiteResult

SCHEMA = 1
OVERLAY_FOLDER = "overlays"
OVERLAYS_PER_SITE = 2
_OVERLAY_TIMEOUT_S = 600.0
_OUTCOMES = {
    "visit_merged": "merged",
    "visit_kept_out": "kept out",
    "visit_refused": "refused",
    "visit_reverted": "reverted",
    "model_dropped": "dropped",
    "model_broken": "broken",
}
_UNDONE_SWAPS = ("swap_dropped", "swap_in_doubt", "swap_lost")


def document(result: RunResult) -> dict[str, Any]:
    """The content of report.json."""
    return {
        "schema": SCHEMA,
        "algorithm": result.algorithm,
        "wall_s": round(result.wall_s, 2),
        "closed_without": {str(number): sites for number, sites in closed_without(result).items()},
        "sites": [_site(site) for site in result.sites],
    }


def _site(site: SiteResult) -> dict[str, Any]:
    s = site.status
    return {
        "site": site.name,
        "rounds": s.round if s else 0,
        "cases": s.cases if s else 0,
        "dice_test_start": s.dice_test_start if s else None,
        "dice_test": s.dice_test if s else None,
        "dice_val": s.dice_val if s else None,
        "deployed": s.deployed if s else "",
        "deployed_reason": s.deployed_reason if s else "",
        "sent": s.sent if s else 0,
        "received": s.received if s else 0,
        "accepted": taken_in(site),
        "refused": s.refused if s else 0,
        "bytes_out": s.bytes_out if s else 0,
        "bytes_in": s.bytes_in if s else 0,
    }


def taken_in(site: SiteResult) -> int:
    """Models that this site merged, or global models that it began from.

    They are counted from its event log, so that a restart loses none.
    """
    taken = sum(1 for e in site.events if _was_taken(e))
    return taken + len({e.get("round") for e in site.events if e.get("event") == "round_committed"})


def _was_taken(event: Mapping[str, Any]) -> bool:
    """Whether the event says that a peer's model has entered this site's."""
    if event.get("event") == "swap_applied":
        return event.get("reason") in ("mix", "copy")
    return event.get("event") == "round_finished" and event.get("visit") == "merged"


def closed_without(result: RunResult) -> dict[int, dict[str, str]]:
    """Federation round → the listed sites whose updates are not in its global model, and why."""
    found: dict[int, dict[str, str]] = {}
    for site in result.sites:
        for e in site.events:
            if e.get("event") == "round_committed" and e.get("absent"):
                found[int(e["round"])] = dict(e["absent"])
    return dict(sorted(found.items()))


def curve(site: SiteResult, began_at: float) -> Curve:
    """Learning curve from the event log; a round that was trained again after a restart counts once."""
    by_round: dict[int, dict[str, Any]] = {}
    taken, swapped = dict[int, str](), ""
    for e in site.events:
        if e.get("event") == "round_finished" and "round" in e:
            number = int(e["round"])
            by_round[number], taken[number] = e, str(e.get("site", "")) if _was_taken(e) else swapped
            swapped = ""
        elif _was_taken(e):
            swapped = str(e.get("site", ""))
    out = Curve()
    for number, event in sorted(by_round.items()):
        out.rounds.append(number)
        out.at_s.append(float(event["t"]) - began_at)
        out.loss.append(_number(event.get("loss")))
        out.dice_val.append(_number(event.get("dice_val")))
        out.visits.append(taken[number])
    return out


def exchanges(result: RunResult) -> list[Exchange]:
    """The exchanges: sender, arrival and outcome, in the order of arrival."""
    found: list[Exchange] = []
    for site in result.sites:
        arrived: dict[tuple[str, str], Exchange] = {}
        for e in site.events:
            name, sender = str(e.get("event")), str(e.get("site", ""))
            key, at = (sender, str(e.get("hash", ""))), float(e["t"]) - result.began_at
            if name == "model_arrived":
                arrived[key] = Exchange(sender, site.name, at)
                if e.get("holds") in ("update", "global"):  # no visit is waited for
                    arrived[key].outcome, arrived[key].done_s = "merged", at
                found.append(arrived[key])
            elif name in _OUTCOMES and key in arrived:
                arrived[key].outcome, arrived[key].done_s = _OUTCOMES[name], at
            elif name == "swap_applied" and key in arrived and _was_taken(e):
                arrived[key].outcome, arrived[key].done_s = "merged", at
            elif name in _UNDONE_SWAPS:
                for (frm, _), exchange in arrived.items():
                    if frm == sender and exchange.done_s is None:
                        exchange.outcome, exchange.done_s = "dropped", at
    return sorted(found, key=lambda x: x.arrived_s)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


# ---------------------------------------------------------------- files


def write_json(result: RunResult, folder: Path) -> Path:
    """report.json, before anything that may fail."""
    path = folder / "report.json"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(document(result), indent=2, allow_nan=False).encode() + b"\n")
    return path


def write_pages(layout: Layout, result: RunResult, folder: Path) -> list[str]:
    """report.png and report.html, with overlays where a site can make them; returns what is missing."""
    from gossipseg.testbed import page, plots  # matplotlib is only needed here

    pictures, complaints = all_overlays(layout, folder / OVERLAY_FOLDER)
    curves = {site.name: curve(site, result.began_at) for site in result.sites}
    learning = plots.learning(curves)
    moved = exchanges(result)
    timeline = plots.timeline([s.name for s in result.sites], moved, result.wall_s) if moved else None
    samples = plots.samples(pictures)
    plots.together(folder / "report.png", [p for p in (learning, timeline, samples) if p])
    html = page.render(layout, result, document(result), learning, timeline, samples)
    atomic_write(folder / "report.html", html.encode())
    return complaints


def all_overlays(layout: Layout, folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Pictures by site, and the reasons for missing ones. Sites are asked in parallel."""
    shutil.rmtree(folder, ignore_errors=True)
    pictures: dict[str, list[Path]] = {}
    complaints = []
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        asked = {s.name: pool.submit(overlays, s, folder / s.name) for s in layout.sites}
        for name, answer in asked.items():
            try:
                pictures[name] = answer.result()
            except GossipsegError as e:
                complaints.append(str(e))
    return pictures, complaints


def overlays(site: SiteFolder, folder: Path) -> list[Path]:
    """Pictures of image, label and prediction for a few cases, made by the site's deployment model.

    Raises LocalError with the tool's own words when they cannot be made.
    """
    spec = config.worker_spec(config.load(site.config_path, env={}))
    split = "test" if spec.report_test else "validation"  # where no test case has a label
    command = [*python_module("gossipseg.learn.commands.evaluate"), "--spec", "-", "--split", split]
    command += [
        "--overlays",
        str(folder),
        "--max-overlays",
        str(OVERLAYS_PER_SITE),
        "--cases",
        str(OVERLAYS_PER_SITE),
    ]
    try:
        done = subprocess.run(
            command,
            input=spec_json(spec),
            capture_output=True,
            text=True,
            timeout=_OVERLAY_TIMEOUT_S,
            check=False,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        raise LocalError(f"{site.name}: its predictions took more than {_OVERLAY_TIMEOUT_S:.0f} s.") from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise LocalError(f"{site.name}: no pictures of its predictions: {words[0]}")
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise LocalError(f"{site.name}: no pictures of its predictions: the evaluation made none.")
    return pictures


def spec_json(spec: WorkerSpec) -> str:
    """A WorkerSpec as `--spec -` reads it."""
    return json.dumps(dataclasses.asdict(spec))


def table_rows(doc: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Site, test Dice at the start, at the end, difference: for the terminal."""
    rows = []
    for s in doc["sites"]:
        start, end = s["dice_test_start"], s["dice_test"]
        gain = f"{end - start:+.3f}" if start is not None and end is not None else "-"
        rows.append((s["site"], *(("-" if v is None else f"{v:.3f}") for v in (start, end)), gain))
    return rows
