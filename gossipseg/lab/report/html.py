"""The comparison as one HTML file for people who treat patients: what stands in it.

The template is gossipseg/templates/comparison.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from gossipseg.templates import pages

FILE = "report.html"


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
    task = document["settings"]["federation"]["task"]
    lead = first_against_next(document, summaries, claims)
    return pages.render(
        "comparison.html",
        title=f"{task['name']}: {len(document['algorithms'])} methods at {len(document['sites'])} sites",
        about=_about(document),
        failed=document["failed"],
        verdict=words.verdict(summaries, lead),
        conditions=words.conditions(document),
        methods=list(glossary.explained(document["algorithms"])),
        repetitions=len(replicates(document)),
        splits=len(document.get("splits", [])),
        dice_table=table.dice_table(document, summaries),
        sites_picture=plots.sites(document, summaries),
        **found(document),
        **differences(summaries, claims, len(replicates(document))),
        cases_picture=plots.cases(document),
        predictions_picture=panels.predictions(document, pictures),
        tints=glossary.tints(task["labels"]),
        learning_picture=plots.learning(document),
        yardstick=words.yardstick(document),
        gain_table=table.gain_table(summaries),
        exchange_picture=plots.exchange(document),
        likeness=_likeness(document),
        deployed_table=table.deployed_table(document),
        case_rows=_case_rows(document),
        command=" ".join(document["command"]),
        versions=", ".join(f"{k} {v}" for k, v in document["versions"].items()),
        words=words,
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


def first_against_next(
    document: Mapping[str, Any], summaries: Sequence[Summary], claims: Sequence[Claim]
) -> Interval | None:
    """The claim about the two best algorithms; without one, their interval."""
    ranked = words.ranking(summaries)
    if len(ranked) < 2:
        return None
    first, second = ranked[0].algorithm, ranked[1].algorithm
    return claim_of(claims, first, second) or bootstrap(site_differences(document, first, second))


def found(document: Mapping[str, Any]) -> dict[str, Any]:
    """What comparison_found.html shows."""
    heading, rows = table.found_table(document)
    return {"found_heading": heading, "found_rows": rows}


def differences(summaries: Sequence[Summary], claims: Sequence[Claim], repetitions: int) -> dict[str, Any]:
    """What comparison_differences.html shows."""
    heading, rows = table.claim_table(claims)
    said = [words.interval(repetitions), words.tested(claims), words.LIMITS] if claims else []
    if claims and repetitions == 1:
        said.append(words.ONE_SEED)
    named = [claim for claim in claims if claim.reference not in (FLOOR, BASELINE)]
    return {
        "said": said,
        "references": [_against(summaries, r, repetitions) for r in (FLOOR, BASELINE)] if claims else [],
        "named": [words.against(claim, repetitions) for claim in named],
        "claim_heading": heading,
        "claim_rows": rows,
    }


def _against(summaries: Sequence[Summary], reference: str, repetitions: int) -> dict[str, Any]:
    """Picture and sentences on the differences from a reference."""
    lines = []
    for s in summaries:
        if reference in s.against:
            more = words.sites_worse(s) if reference == FLOOR else ""
            lines.append(f"{words.against(s.against[reference], repetitions)} {more}")
    return {
        "about": words.picture_of(reference),
        "picture": plots.intervals(summaries, reference),
        "alt": f"Differences from {words.called(reference)} with intervals",
        "lines": lines,
    }


def _likeness(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of which sites learn alike, of the algorithms that measure it."""
    tables = []
    for name in document["algorithms"]:
        if (last := last_similarity(document, name)) is not None:
            shown = table.similarity_table(last)
            tables.append({"algorithm": name, "round": last["round"], "table": shown})
    return tables


def _case_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (site, *(str(v["cases"][split]) for split in ("training", "validation", "test")))
        for site, v in document["settings"]["sites"].items()
    ]
