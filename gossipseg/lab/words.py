"""What the figures mean, in sentences for people who treat patients.

What belongs here: wording, and the judgement that an interval allows. What must not: HTML, arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossipseg.lab.statistics import BASELINE, FLOOR, Interval, Summary, fedavg_models
from gossipseg.lab.variants import POOLED

NAMES = {
    FLOOR: "training alone",
    POOLED: "training on all images together",
    BASELINE: "federated averaging (FedAvg)",
}

DICE = (
    "Dice measures how well the computer's outline covers the expert's: 1 means that the two are the same, 0 "
    "that they do not touch. A site's figure is the mean over its test images, which no method has seen and "
    "on which nothing was chosen; “all sites” is the mean over the sites, each counted once."
)
INTERVAL = (
    "The 95 % interval is the range of differences that fit the test patients at hand: of a hundred "
    "intervals found so on other patients, about 95 would hold the true difference (fewer where a site has "
    "but a handful of test patients). Where it holds 0, the difference may be due to the choice of patients "
    "alone, and no method has been shown to be the better one. It was found by drawing patients again and "
    "again within each site, both methods always judged on the same patients."
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
    "where the images carry no size: smaller is better."
)
LIKENESS = (
    "How alike the changes were that the sites' training made to what they share: 1 where they pull a model "
    "the same way, 0 where they have nothing in common. A site is given more of those whose changes are like "
    "its own."
)
LIMITS = (
    "The intervals speak of other patients of the same sites. They say nothing of other hospitals, other "
    "scanners, or other settings of the methods."
)
ONE_SEED = (
    "Each method was trained once. Trained again with other random numbers it may well change places with "
    "another one, and the intervals do not know that: repeat with more --seeds and --splits before "
    "believing a small difference."
)


HARM = {
    "nan": "the models it sent held no numbers",
    "scaled": "the models it sent were scaled up a hundredfold",
    "label_flipped": "it trained on outlines with their labels exchanged",
    "random_weights": "the models it sent were random numbers",
}


def called(algorithm: str) -> str:
    """An algorithm in a sentence."""
    return NAMES.get(algorithm, algorithm)


def figure(value: float) -> str:
    """A difference: +0.012, with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def range_text(interval: Interval) -> str:
    """`−0.004 to +0.012`."""
    return f"{figure(interval.low)} to {figure(interval.high)}"


def against(algorithm: str, reference: str, interval: Interval) -> str:
    """One comparison as a sentence."""
    detail = f"difference {figure(interval.mean)} Dice, 95 % interval {range_text(interval)}"
    if interval.verdict == "better":
        return f"{_capital(called(algorithm))} is better than {called(reference)} ({detail})."
    if interval.verdict == "worse":
        return f"{_capital(called(algorithm))} is worse than {called(reference)} ({detail})."
    return (
        f"{_capital(called(algorithm))} has not been shown to be better or worse than {called(reference)} "
        f"({detail})."
    )


def picture_of(reference: str) -> str:
    """How to read the picture of the differences from a reference."""
    cross = " The cross is the site that gains least." if reference == FLOOR else ""
    return (
        f"To the right of the black line a method does better than {called(reference)}, to the left worse. "
        "The dot is the difference measured, the bar its 95 % interval: only a bar that stays clear of the "
        f"line shows a difference.{cross}"
    )


def sites_worse(summary: Summary) -> str:
    """Whether some site is served worse than alone, as a sentence; "" where that was not compared."""
    if summary.worst_site is None or summary.worst_gain is None:
        return ""
    worse = [s for s, i in summary.by_site_against_local.items() if i.verdict == "worse"]
    if worse:
        return f"Worse off than alone: {', '.join(worse)}."
    if summary.worst_gain < 0:
        return (
            f"The site that fares worst is {summary.worst_site} ({figure(summary.worst_gain)} against "
            "training alone), a loss that may be due to the choice of patients."
        )
    least = summary.by_site_against_local.get(summary.worst_site)
    shown = least is not None and least.verdict == "better"
    doubt = "" if shown else ", a gain that may be due to the choice of patients"
    return (
        f"No site's mean is lower than alone; the smallest gain is {figure(summary.worst_gain)} "
        f"({summary.worst_site}){doubt}."
    )


def verdict(summaries: Sequence[Summary], best_against_next: Interval | None) -> list[str]:
    """The short answer: who is first, whether that is certain, who does not win."""
    ranked = ranking(summaries)
    if not ranked:
        return ["No run has come to its end, so there is nothing to compare."]
    first = ranked[0]
    assert first.overall is not None
    said = [f"The highest mean Dice is {first.overall.mean:.3f}: {called(first.algorithm)}."]
    if len(ranked) > 1 and best_against_next is not None:
        second = called(ranked[1].algorithm)
        if best_against_next.verdict == "better":
            said.append(
                f"It is ahead of the next, {second}, by more than the choice of test patients explains "
                f"({_detail(best_against_next)})."
            )
            if first.overall.count == 1:
                said.append("It was trained once: other random numbers may change that.")
        else:
            said.append(
                f"That does not make it the winner: against the next, {second}, the difference is "
                f"{_detail(best_against_next)}, which the choice of test patients alone can explain."
            )
    said += _losers(ranked)
    return said


def _detail(interval: Interval) -> str:
    return f"{figure(interval.mean)}, 95 % interval {range_text(interval)}"


def _losers(ranked: Sequence[Summary]) -> list[str]:
    """Who has not been shown to be better than the floor, or than the baseline, said plainly."""
    said = []
    for reference in (FLOOR, BASELINE):
        failed = [
            s.algorithm
            for s in ranked
            if s.algorithm != FLOOR
            and (interval := s.against.get(reference)) is not None
            and interval.verdict != "better"
        ]
        if failed:
            verb = "does" if len(failed) == 1 else "do"
            said.append(f"{', '.join(failed)} {verb} not win against {called(reference)} in this comparison.")
    return said


def ranking(summaries: Sequence[Summary]) -> list[Summary]:
    """Best first, without `pooled`: no federation can choose that."""
    scored = [s for s in summaries if s.overall is not None and not s.algorithm.startswith(POOLED)]
    return sorted(scored, key=lambda s: -(s.overall.mean if s.overall else 0.0))


def yardstick(document: Mapping[str, Any]) -> str:
    """What bytes/FedAvg relates to, as a sentence."""
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
    """What was made harder, or equal, on purpose; what is not alike."""
    settings = document["settings"]
    said = []
    if settings["site_dropout"]:
        said.append(
            f"Each time a site would begin a round, it vanished with a chance of "
            f"{100 * settings['site_dropout']:.0f} % for about one and a half rounds."
        )
    for site, number in settings["late_join"].items():
        said.append(f"{site} joined late, in round {number} of the others.")
    if settings["speed"]:
        slowest = max(settings["speed"], key=lambda s: float(settings["speed"][s]))
        said.append(f"The sites differed in speed, up to ×{settings['speed'][slowest]:g} ({slowest}).")
    for site, kind in settings.get("adversaries", {}).items():
        said.append(f"{site} had turned bad on purpose: {HARM[kind]}. It is not scored itself.")
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


def _capital(text: str) -> str:
    """The beginning of a sentence; an algorithm's name stays as the tables have it."""
    return text[:1].upper() + text[1:] if text in NAMES.values() else text
