"""The meaning of the figures, in sentences for people who treat patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossipseg.lab.plan.choices import attack_of
from gossipseg.lab.plan.variants import LONE_PAIR, POOLED
from gossipseg.lab.report.intervals import Interval
from gossipseg.lab.report.statistics import ALPHA, BASELINE, FLOOR, Claim, Summary, fedavg_models
from gossipseg.learn.params import cosine_rate

NAMES = {
    FLOOR: "training alone",
    POOLED: "training on all images together",
    LONE_PAIR: "two models trained alone",
    BASELINE: "federated averaging (FedAvg)",
}

DICE = (
    "Dice measures how well the computer's outline covers the expert's: 1 means that the two are the same, 0 "
    "that they do not touch. A structure that was missed counts as 0; an image whose label does not hold it "
    "is left out of the mean. A site's figure is the mean over its test images, which no method has seen and "
    "on which nothing was chosen; “all sites” is the mean over the sites, each counted once."
)
INTERVAL = (
    "The 95 % interval is a range of differences that fit what was measured. It was found by drawing {drawn} "
    "again and again, both methods always judged on the same ones. Of a hundred intervals found so on other "
    "{units}, about 95 would hold the true difference; fewer where a site has but a handful of test patients"
    "{too_narrow}."
)
TESTED = (
    "{count}: each method against training alone and against FedAvg, as far as these were "
    "run{named}. Among many comparisons some look like a difference by chance, so that each p value was "
    "corrected for their number (Holm). “Better” or “worse” is said where the corrected p is below 0.05. The "
    "test (a t test) makes allowance for few patients and few repetitions. The intervals do not, nor for the "
    "number of comparisons: one may stay clear of 0 where the test does not find a difference. Single sites, "
    "and other pairs of methods, were not tested."
)
BARS = (
    "Each bar is a method's mean Dice at a site, as in the table: higher is better. Which differences can be "
    "relied on is told in the next section."
)
WHISKERS = "The thin line at a bar's end is one standard deviation over the repetitions up and down."
CASES = (
    "A dot is one test image, its shape tells the site. The box holds the middle half of the images, the "
    "line in it is the median, and the thin lines reach to the last image within one and a half lengths of "
    "the box. Dots far to the left are images that a method outlines badly."
)
COSTS = (
    "Bytes are those of all models sent. Gradients count the training steps of all models at all sites, and "
    "s is seconds of computing at all sites together, longer where the machine had other work; both are of "
    "one repetition."
)
HD95 = (
    "HD95 is the distance that 95 % of one outline keeps within of the other, in millimetres, or in pixels "
    "where the images carry no size: smaller is better. An image in which nothing was outlined counts with "
    "its diagonal."
)
DEPLOYED = (
    "Where a site trains two models, both predict together, with weights that its validation images chose. "
    "“alone” is the Dice of its own model on these images, “deployed” that of what predicts, and the gain "
    "stands with its standard error over patients."
)
FOUND = (
    "Of the test images whose label holds a structure, how many the outline touches (detected) or not "
    "(missed); of those whose label does not hold it, in how many it was outlined all the same (false "
    "alarms), and how many voxels that came to. Beside HD95 stands its mean without the images in which the "
    "structure was missed. All sites and repetitions together."
)
LIKENESS = (
    "How alike the changes were that the sites' training made to what they share: 1 where they pull a model "
    "the same way, 0 where they have nothing in common. A site is given more of those whose changes are like "
    "its own."
)
LIMITS = (
    "Intervals and tests speak of other patients of the same sites. They say nothing of other hospitals, "
    "other scanners, or other settings of the methods."
)
ONE_SEED = (
    "Each method was trained once. Trained again with other random numbers it may well change places with "
    "another one, and neither the intervals nor the tests know that: they know of no other seeds and "
    "splits. Repeat with more --seeds and --splits before believing a small difference."
)


HARM = {
    "nan": "the models it sent held no numbers",
    "scaled": "the models it sent were scaled up a hundredfold",
    "label_flipped": "it trained on outlines with their labels exchanged",
    "random_weights": "the models it sent were random numbers",
}


def called(algorithm: str) -> str:
    """An algorithm's name in a sentence."""
    return NAMES.get(algorithm, algorithm)


def figure(value: float) -> str:
    """A difference: +0.012, with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def range_text(interval: Interval) -> str:
    """`−0.004 to +0.012`."""
    return f"{figure(interval.low)} to {figure(interval.high)}"


def p_text(p: float | None) -> str:
    """`0.012`; a p that could not be computed is a dash."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def interval(repetitions: int) -> str:
    """What an interval is, in a comparison with this number of repetitions."""
    if repetitions == 1:
        return INTERVAL.format(drawn="patients within each site", units="patients", too_narrow="")
    return INTERVAL.format(
        drawn="repetitions, and patients within each site,",
        units="patients and in other repetitions",
        too_narrow=f", or where there are as few repetitions as {repetitions}" if repetitions < 10 else "",
    )


def tested(claims: Sequence[Claim]) -> str:
    """What was tested, and what a verdict requires."""
    named = any(c.reference not in (FLOOR, BASELINE) for c in claims)
    return TESTED.format(
        count="One comparison was tested" if len(claims) == 1 else f"{len(claims)} comparisons were tested",
        named=", and the pairs named with --claim" if named else "",
    )


def star(claims: Sequence[Claim]) -> str:
    """What a star in a table means."""
    return (
        f"* p < {ALPHA:g}, corrected for the number of comparisons ({len(claims)}; Holm). The intervals are "
        "not corrected."
    )


def against(claim: Claim, repetitions: int) -> str:
    """One claim as a sentence, in a comparison with this number of repetitions."""
    mine, reference = _capital(called(claim.algorithm)), called(claim.reference)
    fewer = (
        f", of {claim.repetitions} of {repetitions} repetitions" if claim.repetitions < repetitions else ""
    )
    detail = f"(difference {figure(claim.mean)} Dice{fewer}, {_chance(claim)})"
    if claim.verdict != "unclear":
        return f"{mine} is {claim.verdict} than {reference} {detail}."
    return f"{mine} has not been shown to be better or worse than {reference} {detail}."


def _chance(claim: Claim) -> str:
    """The interval, and the result of the test."""
    said = f"95 % interval {range_text(claim)}"
    if claim.p_holm is None:
        return f"{said}, not tested: a site tests one patient at a time, or no result differs from another"
    return f"{said}, corrected p {p_text(claim.p_holm)}"


def picture_of(reference: str) -> str:
    """How to read the picture of the differences from a reference."""
    cross = " The cross is the site that gains least." if reference == FLOOR else ""
    return (
        f"To the right of the black line a method does better than {called(reference)}, to the left worse. "
        "The dot is the difference measured, the bar its 95 % interval. A bar that crosses the line shows no "
        f"difference; whether one that stays clear of it does is told below.{cross}"
    )


def sites_worse(summary: Summary) -> str:
    """The site that gains least over training alone, as a sentence without a verdict: single sites are not
    tested. It is "" where that was not compared."""
    if summary.worst_site is None or summary.worst_gain is None:
        return ""
    least = summary.by_site_against_local.get(summary.worst_site)
    told = "" if least is None or least.low == least.high else f", 95 % interval {range_text(least)}"
    if summary.worst_gain < 0:
        return (
            f"The site that fares worst is {summary.worst_site} ({figure(summary.worst_gain)} against "
            f"training alone{told})."
        )
    return (
        f"No site's mean is lower than alone; the smallest gain is {figure(summary.worst_gain)} "
        f"({summary.worst_site}{told})."
    )


def verdict(summaries: Sequence[Summary], best_against_next: Interval | None) -> list[str]:
    """The short answer: which algorithm is first, whether that is certain, which does not win.

    `best_against_next`: a claim where the two best are one, else only an interval.
    """
    ranked = ranking(summaries)
    if not ranked:
        return ["No run has finished, so there is nothing to compare."]
    first = ranked[0]
    assert first.overall is not None
    said = [f"The highest mean Dice is {first.overall.mean:.3f}: {called(first.algorithm)}."]
    if len(ranked) > 1 and best_against_next is not None:
        said += _lead(first, called(ranked[1].algorithm), best_against_next)
    said += _losers(ranked)
    return said


def _lead(first: Summary, second: str, found: Interval) -> list[str]:
    if not isinstance(found, Claim):
        return [
            f"Whether it is ahead of the next, {second}, was not tested: the difference is "
            f"{figure(found.mean)}, 95 % interval {range_text(found)}, but an interval shows nothing of two "
            "methods that were picked by their results."
        ]
    detail = f"{figure(found.mean)}, {_chance(found)}"
    chance = "the choice of test patients" + (", or of repetitions," if found.repetitions > 1 else "")
    if found.verdict != "better":
        return [
            f"That does not make it the winner: against the next, {second}, the difference is {detail}; "
            f"{chance} alone can explain it."
        ]
    said = [f"It is ahead of the next, {second}, by more than {chance} explains ({detail})."]
    if found.repetitions == 1:
        said.append("It was trained once: other random numbers may change that.")
    return said


def _losers(ranked: Sequence[Summary]) -> list[str]:
    """The algorithms that have not been shown to be better than the floor, or than the baseline."""
    said = []
    for reference in (FLOOR, BASELINE):
        failed = [
            s.algorithm
            for s in ranked
            if s.algorithm != FLOOR
            and (claim := s.against.get(reference)) is not None
            and claim.verdict != "better"
        ]
        if failed:
            verb = "does" if len(failed) == 1 else "do"
            said.append(f"{', '.join(failed)} {verb} not win against {called(reference)} in this comparison.")
    return said


def ranking(summaries: Sequence[Summary]) -> list[Summary]:
    """Best first, without `pooled`, which no federation can choose."""
    scored = [s for s in summaries if s.overall is not None and not s.algorithm.startswith(POOLED)]
    return sorted(scored, key=lambda s: -(s.overall.mean if s.overall else 0.0))


def yardstick(document: Mapping[str, Any]) -> str:
    """The unit of bytes/FedAvg, as a sentence."""
    if any(row["algorithm"] == BASELINE and row["model_bytes_out"] for row in document["runs"]):
        return "100 % is what FedAvg moved in this comparison."
    settings = document["settings"]
    if not fedavg_models(len(document["sites"]), settings["rounds"]):
        return "With one site FedAvg moves no model: there is nothing to relate bytes to."
    network, size = settings["federation"]["network"]["name"], document.get("fedavg_model_bytes")
    if not size:
        return (
            f"FedAvg was not run, and what it would move with the network of these settings ({network}) "
            "cannot be told: there is nothing to relate bytes to."
        )
    return (
        "100 % is what FedAvg, which was not run, would move: the whole model of the federation's network "
        f"({network}, {size / 1e6:.3g} MB), twice a round for each site but the coordinator."
    )


def conditions(document: Mapping[str, Any]) -> list[str]:
    """What was made harder, or equal, on purpose, and what differs."""
    settings = document["settings"]
    said = _cut_short(settings)
    if settings["site_dropout"]:
        said.append(
            f"Each time a site would begin a round, it was away with a probability of "
            f"{100 * settings['site_dropout']:.0f} % for about one and a half rounds."
        )
    for site, number in settings["late_join"].items():
        said.append(f"{site} joined late, in round {number} of the others.")
    if settings["speed"]:
        slowest = max(settings["speed"], key=lambda s: float(settings["speed"][s]))
        said.append(f"The sites differed in speed, up to ×{settings['speed'][slowest]:g} ({slowest}).")
    for site, attack in settings.get("adversaries", {}).items():
        kind, times = attack_of(attack)
        claim = f" It claimed {times:,} times its training cases." if times > 1 else ""
        said.append(f"{site} was made malicious on purpose: {HARM[kind]}.{claim} It is not scored itself.")
    for site, share in settings["kept_cases"].items():
        said.append(f"{site} kept {100 * share:.0f} % of its training cases.")
    networks: dict[str, list[str]] = {}
    for row in document["runs"]:
        names = networks.setdefault(row.get("network", "one of an earlier version"), [])
        if row["algorithm"] not in names:
            names.append(row["algorithm"])
    if len(networks) > 1:
        which = "; ".join(f"{network}: {', '.join(names)}" for network, names in networks.items())
        said.append(
            f"Not all methods trained the same network ({which}): a difference between them may be the "
            "network's."
        )
    if settings["equal_evaluations"]:
        said.append(
            "Where two models trained on a batch, each took half of the steps: every method computed as many "
            "gradients."
        )
    return said


def _cut_short(settings: Mapping[str, Any]) -> list[str]:
    """Whether the runs ended in the middle of the learning rate's cosine."""
    training, trained = settings.get("federation", {}).get("training", {}), settings.get("rounds", 0)
    whole = training.get("schedule_rounds") or training.get("rounds")
    if whole is None or trained >= whole or training.get("schedule", "auto") not in ("auto", "cosine"):
        return []
    return [
        f"The learning rate falls along a cosine of {whole} rounds, and the first {trained} of them were "
        f"trained: it ended at {100 * cosine_rate(1.0, trained, whole):.0f} % of what it began with."
    ]


def _capital(text: str) -> str:
    """The beginning of a sentence; an algorithm's name stays as the tables have it."""
    return text[:1].upper() + text[1:] if text in NAMES.values() else text
