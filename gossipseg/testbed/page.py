"""The report as one self-contained HTML file: pictures are inside, there is no script."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from html import escape
from typing import Any

from gossipseg import __version__
from gossipseg.testbed.layout import Layout
from gossipseg.testbed.live import size
from gossipseg.testbed.plots import colours
from gossipseg.testbed.run import RunResult

_STYLE = """
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#2b2f36;background:#fff;
max-width:62rem;margin:2.5rem auto;padding:0 1.25rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2.2rem 0 .5rem}
p{margin:.4rem 0;max-width:48rem}.faint{color:#68707d}.bad{color:#b3261e}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.95rem}
th{text-align:right;font-weight:600;color:#68707d;border-bottom:2px solid #d5dae1;padding:.35rem .6rem}
td{text-align:right;border-bottom:1px solid #e9ecf0;padding:.4rem .6rem}
th:first-child,td:first-child{text-align:left;font-weight:600}
td.main{font-weight:700}img{max-width:100%;height:auto;display:block}
.scroll{overflow-x:auto}
"""
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
    parts = [
        f"<h1>{escape(layout.task.name)}: {len(doc['sites'])} sites, {escape(doc['algorithm'])}</h1>",
        f'<p class="faint">{_when(result)} &middot; {_minutes(result.wall_s)} &middot; '
        f"gossipseg {escape(__version__)}</p>",
        *(_missing(result)),
        *(_incomplete(doc)),
        "<h2>Segmentation quality and traffic</h2>",
        f'<div class="scroll">{_table(doc)}</div>',
        '<p class="faint">Dice of each site’s deployment model (the running average of its training model) '
        "on its own test images, which nothing was chosen on, at each label’s own grid. A class that was "
        "missed counts as 0; an image whose label does not hold it is left out. <code>gossipctl "
        "evaluate</code> at a site tells what was missed, and what was drawn where there is nothing.</p>",
        "<h2>Learning curves</h2>",
        _image(learning, "Validation Dice and training loss of each site by round"),
        "<h2>Exchange of models</h2>",
        *_exchanges(timeline),
    ]
    if samples:
        parts += ["<h2>Test images, labels and predictions</h2>", _image(samples, "Predictions by site")]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>gossipseg: {escape(layout.task.name)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _exchanges(timeline: bytes | None) -> list[str]:
    if timeline is None:
        return ["<p>No model arrived at another site.</p>"]
    return [
        '<p class="faint">An arrow is a model that arrived, in its sender’s colour; the bar after it is the '
        "time until the receiver was done with it.</p>",
        _image(timeline, "Which site sent a model to which, and when"),
    ]


def _incomplete(doc: Mapping[str, Any]) -> list[str]:
    """Rounds that were closed without a listed site."""
    lines = []
    for number, sites in doc["closed_without"].items():
        without = ", ".join(f"{site} ({reason})" for site, reason in sites.items())
        lines.append(f'<p class="bad">Round {escape(number)} was closed without {escape(without)}.</p>')
    return lines


def _missing(result: RunResult) -> list[str]:
    return [
        f'<p class="bad">{escape(s.name)} did not finish ({escape(s.state)}): {escape(s.reason)}</p>'
        for s in result.missing
    ]


def _table(doc: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for _, title in _COLUMNS)
    colour = colours([s["site"] for s in doc["sites"]])
    rows = []
    for site in doc["sites"]:
        cells = "".join(_cell(key, site, colour[site["site"]]) for key, _ in _COLUMNS)
        rows.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(key: str, site: Mapping[str, Any], colour: str) -> str:
    if key == "site":
        return f'<td style="color:{colour}">{escape(site["site"])}</td>'
    if key == "gain":
        start, end = site["dice_test_start"], site["dice_test"]
        return f"<td>{'' if start is None or end is None else f'{end - start:+.3f}'}</td>"
    value = site[key]
    if key.startswith("dice"):
        text = "" if value is None else f"{value:.3f}"
    else:
        text = size(value) if key.startswith("bytes") else str(value)
    return f'<td class="{"main" if key == "dice_test" else ""}">{escape(text)}</td>'


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _when(result: RunResult) -> str:
    return datetime.datetime.fromtimestamp(result.began_at).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
