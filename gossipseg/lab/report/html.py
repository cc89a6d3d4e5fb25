"""The comparison as one HTML file for people who treat patients: pictures are inside, there is no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gossipseg.lab.report import glossary, panels, plots, table, words
from gossipseg.lab.report.intervals import Interval, bootstrap
from gossipseg.lab.report.statistics import (
    BASELINE,
    FLOOR,
    Claim,
    Summary,
    claim_of,
    last_similarity,
    replicates,
    site_differences,
)
from gossipseg.store import atomic_write

FILE = "report.html"
_STYLE = """
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#2b2f36;background:#fff;
max-width:64rem;margin:2.5rem auto;padding:0 1.25rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2.4rem 0 .5rem}
p,li{margin:.4rem 0;max-width:50rem}.faint{color:#68707d}.bad{color:#b3261e}
.answer{background:#f3f6fa;border-left:4px solid #2f6db3;padding:.6rem 1rem;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th{text-align:right;font-weight:600;color:#68707d;border-bottom:2px solid #d5dae1;padding:.35rem .6rem}
td{text-align:right;border-bottom:1px solid #e9ecf0;padding:.4rem .6rem;white-space:nowrap}
th:first-child,td:first-child{text-align:left;font-weight:600}
img{max-width:100%;height:auto;display:block}.scroll{overflow-x:auto}
details{margin:.6rem 0}pre{white-space:pre-wrap;font-size:.85rem;background:#f6f7f9;padding:.6rem}
"""


def write(
    out: Path, document: Mapping[str, Any], summaries: Sequence[Summary], claims: Sequence[Claim]
) -> Path:
    """report.html in the comparison's folder."""
    path = out / FILE
    atomic_write(path, render(document, summaries, claims, out / "pictures").encode())
    return path


def render(
    document: Mapping[str, Any], summaries: Sequence[Summary], claims: Sequence[Claim], pictures: Path
) -> str:
    """The whole page."""
    settings = document["settings"]
    task = settings["federation"]["task"]
    lead = first_against_next(document, summaries, claims)
    title = f"{task['name']}: {len(document['algorithms'])} methods at {len(document['sites'])} sites"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(_about(document))}</p>',
        *_failed(document),
        '<div class="answer">',
        *(f"<p>{escape(line)}</p>" for line in words.verdict(summaries, lead)),
        "</div>",
        f"<p>{escape(words.DICE)}</p>",
        *(f"<p>{escape(line)}</p>" for line in words.conditions(document)),
        *_methods(document),
        "<h2>How well each method outlines, site by site</h2>",
        _table(*table.dice_table(document, summaries)),
        f'<p class="faint">{_spread(document)}{escape(words.HD95)}</p>',
        _image(plots.sites(document, summaries), "Test Dice by site and method"),
        f"<p>{escape(words.BARS)}{_whiskers(document)}</p>",
        *_found(document),
        *_compared(summaries, claims, len(replicates(document))),
        "<h2>Every test case</h2>",
        f"<p>{escape(words.CASES)}</p>",
        _image(plots.cases(document), "Test Dice of every case by method"),
        *_pictures(document, pictures),
        *_learning(document),
        *_traffic(document, summaries),
        *_likeness(document),
        *_fine_print(document),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _about(document: Mapping[str, Any]) -> str:
    settings = document["settings"]
    steps = settings["federation"]["training"]["steps_per_round"]
    return (
        f"{settings['rounds']} rounds of {steps} steps at each site; {_repetitions(document)}; "
        f"{document['written_at']}; "
        f"gossipseg {document['versions']['gossipseg']}"
    )


def _repetitions(document: Mapping[str, Any]) -> str:
    count, splits = len(replicates(document)), len({r[0] for r in replicates(document)})
    divided = f" on {splits} divisions of the patients" if splits > 1 else ""
    return f"{count} repetition{'s' if count > 1 else ''}{divided}"


def _failed(document: Mapping[str, Any]) -> list[str]:
    return [
        f'<p class="bad">The run {escape(key)} failed, and is not in the figures: {escape(why)}</p>'
        for key, why in document["failed"].items()
    ]


def _methods(document: Mapping[str, Any]) -> list[str]:
    known = glossary.explained(document["algorithms"])
    items = [f"<li><b>{escape(label)}</b>: {escape(said)}.</li>" for label, said in known]
    return ["<h2>The methods</h2>", "<ul>", *items, "</ul>"] if items else []


def _found(document: Mapping[str, Any]) -> list[str]:
    heading, rows = table.found_table(document)
    if not rows:
        return []
    return [
        "<h2>What each method found</h2>",
        f"<p>{escape(words.FOUND)}</p>",
        _table(heading, rows),
    ]


def _spread(document: Mapping[str, Any]) -> str:
    if len(replicates(document)) == 1:
        return ""
    patients = ", other patients tested" if len(document.get("splits", [])) > 1 else ""
    return f"Mean ± standard deviation over the repetitions (other random numbers{patients}). "


def _whiskers(document: Mapping[str, Any]) -> str:
    return f" {escape(words.WHISKERS)}" if len(replicates(document)) > 1 else ""


def first_against_next(
    document: Mapping[str, Any], summaries: Sequence[Summary], claims: Sequence[Claim]
) -> Interval | None:
    """The claim about the two best algorithms; without one, their interval."""
    ranked = words.ranking(summaries)
    if len(ranked) < 2:
        return None
    first, second = ranked[0].algorithm, ranked[1].algorithm
    return claim_of(claims, first, second) or bootstrap(site_differences(document, first, second))


def _compared(summaries: Sequence[Summary], claims: Sequence[Claim], repetitions: int) -> list[str]:
    parts = ["<h2>Is it worth it? Each method against training alone, and against FedAvg</h2>"]
    if not claims:
        return [
            *parts,
            "<p>Neither <code>local</code> nor <code>fedavg</code> was run: add them to compare.</p>",
        ]
    said = (words.interval(repetitions), words.tested(claims), words.LIMITS)
    parts += [f"<p>{escape(text)}</p>" for text in said]
    if repetitions == 1:
        parts.append(f"<p>{escape(words.ONE_SEED)}</p>")
    for reference in (FLOOR, BASELINE):
        picture = plots.intervals(summaries, reference)
        if picture is None:
            continue
        parts.append(f"<p>{escape(words.picture_of(reference))}</p>")
        parts.append(_image(picture, f"Differences from {words.called(reference)} with intervals"))
        lines = []
        for s in summaries:
            if reference in s.against:
                more = words.sites_worse(s) if reference == FLOOR else ""
                lines.append(f"{words.against(s.against[reference], repetitions)} {more}")
        parts += _list(lines)
    named = [claim for claim in claims if claim.reference not in (FLOOR, BASELINE)]
    if named:
        parts.append("<p>The pairs that were named for this comparison:</p>")
        parts += _list([words.against(claim, repetitions) for claim in named])
    parts.append(_table(*table.claim_table(claims)))
    return parts


def _list(lines: Sequence[str]) -> list[str]:
    return ["<ul>", *(f"<li>{escape(line.strip())}</li>" for line in lines), "</ul>"]


def _pictures(document: Mapping[str, Any], folder: Path) -> list[str]:
    picture = panels.predictions(document, folder)
    if picture is None:
        return []
    tints = glossary.tints(document["settings"]["federation"]["task"]["labels"])
    return [
        "<h2>What the methods draw</h2>",
        f"<p>A few test images of each site. The tint is what the method marks ({escape(tints)}); the thin "
        "yellow line is the expert’s outline. Of a scan of many slices one is shown, the one with most of "
        "the expert’s label; Dice is that of the whole scan.</p>",
        _image(picture, "Predictions of each method with the outline of the label"),
    ]


def _learning(document: Mapping[str, Any]) -> list[str]:
    picture = plots.learning(document)
    if picture is None:
        return []
    band = " A band spans the repetitions." if len(replicates(document)) > 1 else ""
    return [
        "<h2>How they learn</h2>",
        "<p>Dice on each site’s validation images as training goes on: other images than those tested "
        f"above.{band}</p>",
        _image(picture, "Validation Dice by round"),
    ]


def _traffic(document: Mapping[str, Any], summaries: Sequence[Summary]) -> list[str]:
    parts = [
        "<h2>What it costs</h2>",
        f"<p>Images never leave a site; models do. {escape(words.yardstick(document))} "
        f"{escape(words.COSTS)}</p>",
        _table(*table.gain_table(summaries)),
    ]
    picture = plots.exchange(document)
    if picture is not None:
        parts.append(
            "<p>Who sent models to whom; of one method, the wider the arrow, the more. The number is that of "
            "all models sent in a repetition.</p>"
        )
        parts.append(_image(picture, "Graph of the models sent between sites"))
    return parts


def _likeness(document: Mapping[str, Any]) -> list[str]:
    parts = []
    for name in document["algorithms"]:
        if (found := last_similarity(document, name)) is not None:
            once = " of the first repetition" if len(replicates(document)) > 1 else ""
            parts.append(f"<p><b>{escape(name)}</b>, round {found['round']}{once}:</p>")
            parts.append(_table(*table.similarity_table(found)))
    heading = ["<h2>Which sites learn alike</h2>", f"<p>{escape(words.LIKENESS)}</p>"]
    return heading + parts if parts else []


def _fine_print(document: Mapping[str, Any]) -> list[str]:
    cases = [
        (site, *(str(v["cases"][split]) for split in ("training", "validation", "test")))
        for site, v in document["settings"]["sites"].items()
    ]
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    return [
        "<h2>Fine print</h2>",
        _table(("site", "training images", "validation", "test"), cases),
        "<p>All methods began with the same model and saw the same batches of images in the same order; the "
        "model judged is the running average of the training model. Images whose names tell that they are of "
        "one patient counted as one patient in the intervals.</p>",
        f"<details><summary>Command and versions</summary><pre>{escape(' '.join(document['command']))}\n"
        f"{escape(versions)}</pre></details>",
    ]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _image(picture: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
