"""The report of a run as one HTML file: what stands in it.

The template is gossipseg/templates/testbed.html.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from gossipseg import __version__
from gossipseg.templates import pages
from gossipseg.testbed.layout import Layout
from gossipseg.testbed.live import size
from gossipseg.testbed.plots import colours
from gossipseg.testbed.run import RunResult

_COLUMNS = (
    ("site", "site"),
    ("cases", "training cases"),
    ("rounds", "rounds"),
    ("dice_test_start", "test Dice at start"),
    ("dice_test", "test Dice at end"),
    ("gain", "gain"),
    ("dice_val", "validation Dice"),
    ("sent", "sent"),
    ("received", "received"),
    ("accepted", "accepted"),
    ("refused", "refused"),
    ("bytes_out", "out"),
    ("bytes_in", "in"),
)


def render(
    layout: Layout,
    result: RunResult,
    doc: Mapping[str, Any],
    learning: bytes,
    timeline: bytes | None,
    samples: bytes | None,
) -> str:
    """The whole page. Pictures are PNG bytes."""
    colour = colours([s["site"] for s in doc["sites"]])
    return pages.render(
        "testbed.html",
        task=layout.task.name,
        algorithm=doc["algorithm"],
        when=_when(result),
        took=_minutes(result.wall_s),
        version=__version__,
        missing=result.missing,
        closed_without=_closed_without(doc),
        columns=[title for _, title in _COLUMNS],
        sites=[
            {
                "name": s["site"],
                "colour": colour[s["site"]],
                "figures": _figures(s),
                "deployed": s["deployed_reason"],
            }
            for s in doc["sites"]
        ],
        learning=learning,
        timeline=timeline,
        samples=samples,
    )


def _closed_without(doc: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rounds that were closed without listed sites, and in words, without which and why."""
    return [
        (number, ", ".join(f"{site} ({reason})" for site, reason in sites.items()))
        for number, sites in doc["closed_without"].items()
    ]


def _figures(site: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and text of each column behind the site's name."""
    return [(key, _text(key, site)) for key, _ in _COLUMNS if key != "site"]


def _text(key: str, site: Mapping[str, Any]) -> str:
    if key == "gain":
        start, end = site["dice_test_start"], site["dice_test"]
        return "" if start is None or end is None else f"{end - start:+.3f}"
    value = site[key]
    if key.startswith("dice"):
        return "" if value is None else f"{value:.3f}"
    return size(value) if key.startswith("bytes") else str(value)


def _when(result: RunResult) -> str:
    return datetime.datetime.fromtimestamp(result.began_at).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
