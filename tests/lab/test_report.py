"""What the report says and shows: judgements that the intervals allow, labels that can be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossipseg.lab.plan import variants
from gossipseg.lab.plan.choices import ADVERSARIES
from gossipseg.lab.report import glossary, html, panels, plots, statistics, table, words
from gossipseg.lab.report.statistics import Claim, Summary
from gossipseg.learn.evaluation.overlays import COLOURS as LABEL_COLOURS
from gossipseg.templates import pages
from tests.lab.test_statistics import TWO_SITES, document, row


def claim(low: float, high: float, p_holm: float | None = 0.01, *, repetitions: int = 1) -> Claim:
    return Claim((low + high) / 2, low, high, 20, 20, repetitions, "gcml", "local", 0.001, p_holm)


def compared(gain: float, *, patients: int = 12) -> dict[str, Any]:
    """`gcml` against `local` at one site: a gain at every patient, with a little scatter."""
    cases = {f"p{i}": 0.5 + 0.02 * (i % 3) for i in range(patients)}
    better = {case: dice + gain * (1 + 0.1 * (i % 2)) for i, (case, dice) in enumerate(cases.items())}
    return {**document(row("local", 0, "a", cases), row("gcml", 0, "a", better)), "seeds": [0]}


def said_of(doc: dict[str, Any]) -> str:
    summaries, claims = statistics.summarise(doc), statistics.claims(doc)
    return " ".join(words.verdict(summaries, html.first_against_next(doc, summaries, claims)))


def test_a_clear_winner_is_named() -> None:
    said = said_of(compared(+0.05))
    assert "The highest mean Dice" in said
    assert "gcml" in said
    assert "by more than the choice of test patients explains" in said
    assert "It was trained once" in said
    assert "not win" not in said


def test_a_loser_is_named_as_one_that_does_not_win() -> None:
    said = said_of(compared(-0.05))
    assert "training alone" in said.split(".")[1] + said.split(".")[2]
    assert "gcml does not win against training alone" in said


def test_a_lead_that_chance_can_explain_is_no_win() -> None:
    cases = {f"p{i}": 0.5 for i in range(10)}
    mixed = {case: 0.5 + (0.2 if i % 2 else -0.19) for i, case in enumerate(cases)}
    said = said_of({**document(row("local", 0, "a", cases), row("gcml", 0, "a", mixed)), "seeds": [0]})
    assert "That does not make it the winner" in said
    assert "gcml does not win" in said


def test_pooled_is_no_winner_of_a_federation() -> None:
    doc = document(
        row("local", 0, "a", {"p": 0.5, "q": 0.6}),
        row("gcml", 0, "a", {"p": 0.6, "q": 0.7}),
        row("pooled", 0, "a", {"p": 0.9, "q": 0.9}),
    )
    assert [s.algorithm for s in words.ranking(statistics.summarise(doc))] == ["gcml", "local"]


def test_two_that_were_not_claimed_beforehand_are_not_judged() -> None:
    """The best and the next are picked by their results; where they are no claim nothing was tested."""
    ten = {f"p{i}": 0.5 + 0.01 * i for i in range(10)}
    runs = [row("local", 0, "a", ten)]
    for name, gain in (("gcml", 0.1), ("ditto", 0.05)):
        runs.append(row(name, 0, "a", {p: d + gain * (1 + 0.1 * (d > 0.54)) for p, d in ten.items()}))
    said = said_of(document(*runs))
    assert "Whether it is ahead of the next, ditto, was not tested" in said and "It is ahead" not in said
    named = {**document(*runs), "named_claims": [["ditto", "gcml"]]}
    assert "It is ahead of the next, ditto, by more than" in said_of(named)


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "verdict"),
    [
        (0.01, 0.03, 0.01, "is better than training alone"),
        (-0.03, -0.01, 0.01, "is worse than training alone"),
        (-0.01, 0.03, 0.4, "has not been shown to be better or worse than training alone"),
        (0.01, 0.03, 0.07, "has not been shown to be better or worse than training alone"),
        (0.01, 0.03, None, "has not been shown to be better or worse than training alone"),
    ],
)
def test_a_comparison_says_what_its_test_allows(
    low: float, high: float, p_holm: float | None, verdict: str
) -> None:
    said = words.against(claim(low, high, p_holm), 1)
    assert said.startswith(f"gcml {verdict}")
    assert words.figure(low) in said
    assert ("not tested" if p_holm is None else f"corrected p {p_holm:.3f}") in said
    assert "-" not in words.figure(-0.01), "a minus sign, not a hyphen"


def test_an_algorithm_with_fewer_repetitions_is_told_of() -> None:
    assert "of 2 of 3 repetitions" in words.against(claim(0.01, 0.03, repetitions=2), 3)
    assert "repetition" not in words.against(claim(0.01, 0.03, repetitions=3), 3)


def page(doc: dict[str, Any]) -> str:
    """The section of the report on differences."""
    summaries, claims = statistics.summarise(doc), statistics.claims(doc)
    values = html.differences(summaries, claims, len(statistics.replicates(doc)))
    return pages.render("comparison_differences.html", **values)


def test_the_page_says_what_its_intervals_and_tests_know() -> None:
    once = page(compared(+0.05))
    assert "by drawing patients within each site again" in once
    assert "they know of no other seeds and splits" in once
    assert "One comparison was tested: each method" in once and "corrected for their number (Holm)" in once
    assert "were not tested" in once
    twice = page({**TWO_SITES, "seeds": [0, 1]})
    assert "by drawing repetitions, and patients within each site, again" in twice
    assert "or where there are as few repetitions as 2" in twice
    assert "no other seeds" not in twice


def test_pairs_that_were_named_are_shown() -> None:
    doc = compared(+0.05)
    doc = document(
        *doc["runs"], *[{**r, "algorithm": "ditto"} for r in doc["runs"] if r["algorithm"] == "local"]
    )
    assert "named" not in page(doc)
    shown = page({**doc, "named_claims": [["gcml", "ditto"]]})
    assert "and the pairs named with --claim" in shown
    assert "gcml is better than ditto" in shown and "gcml against ditto" in shown


def test_the_worst_site_is_told_of() -> None:
    summary = statistics.summarise(TWO_SITES)[1]
    assert summary.worst_site == "b"
    assert words.sites_worse(summary).startswith(
        "The site that fares worst is b (−0.050 against training alone"
    )
    gains: Summary = statistics.summarise(compared(+0.05))[1]
    assert words.sites_worse(gains).startswith(
        "No site's mean is lower than alone; the smallest gain is +0.052 (a, 95 % interval +0.0"
    )


def test_a_single_site_gets_an_interval_and_no_verdict() -> None:
    cases = {f"p{i}": 0.5 for i in range(10)}
    worse = {case: 0.3 + 0.01 * i for i, case in enumerate(cases)}
    doc = {**document(row("local", 0, "a", cases), row("gcml", 0, "a", worse)), "seeds": [0]}
    said = words.sites_worse(statistics.summarise(doc)[1])
    assert said.startswith(
        "The site that fares worst is a (−0.155 against training alone, 95 % interval −0.1"
    )
    assert "worse off" not in said.lower() and "chance" not in said


def test_a_site_that_was_made_bad_is_named() -> None:
    settings: dict[str, Any] = {key: {} for key in ("late_join", "speed", "kept_cases")}
    settings |= {"site_dropout": 0.0, "equal_evaluations": False}
    for kind in ADVERSARIES:
        said = words.conditions({"settings": {**settings, "adversaries": {"north": kind}}, "runs": []})
        assert said[0].startswith("north was made malicious on purpose: ")
    claims = {**settings, "adversaries": {"north": "nan*1000"}}
    assert "It claimed 1,000 times" in words.conditions({"settings": claims, "runs": []})[0]
    assert words.conditions({"settings": settings, "runs": []}) == [], "an older document"


def test_a_cosine_that_was_cut_short_is_told() -> None:
    def said(trained: int, **training: Any) -> list[str]:
        settings: dict[str, Any] = {key: {} for key in ("late_join", "speed", "kept_cases")}
        settings |= {"site_dropout": 0.0, "equal_evaluations": False, "rounds": trained}
        training = {"schedule": "auto", "rounds": None, "schedule_rounds": None, **training}
        return words.conditions({"settings": {**settings, "federation": {"training": training}}, "runs": []})

    (only,) = said(10, rounds=100)
    assert only == (
        "The learning rate falls along a cosine of 100 rounds, and the first 10 of them were trained: "
        "it ended at 98 % of what it began with."
    )
    assert said(10, rounds=10, schedule_rounds=20) and not said(10, rounds=20, schedule_rounds=10)
    assert said(10, rounds=10) == said(10) == said(10, rounds=100, schedule="constant") == []


def test_what_bytes_relate_to_is_told_where_fedavg_was_not_run() -> None:
    runs = [row("fedsca", 0, site, {"p": 0.5}, model_bytes_out=48) for site in ("a", "b")]
    said = words.yardstick(document(*runs, fedavg_model_bytes=1_500_000))
    assert "which was not run" in said and "the whole model" in said and "(sanet, 1.5 MB)" in said
    beyond = document(*runs, fedavg_model_bytes=None)
    assert "with the network of these settings (sanet) cannot be told" in words.yardstick(beyond)
    heading, rows = table.gain_table(statistics.summarise(beyond))
    assert rows[0][heading.index("bytes/FedAvg")] == table.NOTHING
    assert "FedAvg moves no model" in words.yardstick(document(*runs[:1]))
    measured = [*runs, row("fedavg", 0, "a", {"p": 0.5}, model_bytes_out=9)]
    assert words.yardstick(document(*measured)) == "100 % is what FedAvg moved in this comparison."


# ---------------------------------------------------------------- the methods in words


def test_every_method_is_explained_to_people() -> None:
    assert set(glossary.METHODS) == set(variants.known())
    said = dict(glossary.explained(["gcml", "gcml[lambda=0]", "fedavg@3", "of_a_plugin"]))
    assert said["gcml[lambda=0]"] == "gcml with lambda = 0"
    assert said["fedavg@3"].endswith("; but with an exchange every 3 rounds")
    assert "of_a_plugin" not in said


def test_a_tint_is_told_by_the_label_that_it_marks() -> None:
    assert glossary.tints({"0": "background", "2": "posterior", "1": "anterior"}) == (
        "cyan: anterior, orange: posterior"
    )
    assert len(glossary.TINTS) == len(LABEL_COLOURS)


def test_long_site_names_are_broken_in_their_middle() -> None:
    assert plots.short("site_a_uint8") == "site_a_\nuint8"
    assert plots.short("saint-elsewhere") == "saint-\nelsewhere"
    assert plots.short("north") == "north"


def test_tables_hold_every_algorithm_and_site() -> None:
    doc = {**TWO_SITES, "seeds": [0, 1]}
    summaries = statistics.summarise(doc)
    heading, rows = table.dice_table(doc, summaries)
    assert heading == ("algorithm", "a", "b", "all sites", "HD95")
    assert rows[1] == ("gcml", "0.650 ± 0.071", "0.450 ± 0.071", "0.550 ± 0.000", "3.0 ± 0.0")
    heading, rows = table.gain_table(summaries)
    assert rows[1][heading.index("bytes/FedAvg")] == "40 %"
    heading, rows = table.claim_table(statistics.claims(doc))
    assert rows[0][0] == "gcml against local"
    assert rows[0][1].startswith("+0.025 [")
    assert rows[0][heading.index("p")] == "-" and rows[0][-1] == "unclear", "site b has one patient"
    heading, rows = table.gain_table(summaries)
    text = table.plain(heading, rows)
    clear = compared(+0.05)
    heading, rows = table.gain_table(statistics.summarise(clear))
    assert rows[1][1].endswith("] *")
    assert words.star(statistics.claims(clear)).startswith(
        "* p < 0.05, corrected for the number of comparisons (1;"
    )
    assert len({line.index("s") for line in text.splitlines()[:1]}) == 1


# ---------------------------------------------------------------- pictures


def test_an_outline_lies_around_the_label_and_the_tint_within() -> None:
    image = np.full((12, 12, 3), 100, np.uint8)
    label, predicted = np.zeros((12, 12), np.uint8), np.zeros((12, 12), np.uint8)
    label[4:8, 4:8] = 1
    predicted[5:9, 4:8] = 1
    shown = panels.overlay(image, predicted, label)
    yellow = (shown == (255, 235, 59)).all(-1)
    assert yellow[3, 5]
    assert yellow[5, 3]
    assert not yellow[4:8, 4:8].any(), "the label itself is not covered: what is thin must be seen"
    assert (shown[6, 6] != image[6, 6]).any(), "found: tinted"
    assert (shown[4, 5] == image[4, 5]).all(), "missed: untouched inside its outline"
    assert (shown[0, 0] == image[0, 0]).all()


def test_large_pictures_are_cut_to_where_the_label_is() -> None:
    label = np.zeros((900, 700), np.uint8)
    label[800:810, 20:30] = 1
    window = panels.crop(label)
    assert label[window].shape == (320, 320)
    assert label[window].sum() == 100
    small = np.zeros((50, 60), np.uint8)
    assert small[panels.crop(small)].shape == (50, 60)
    assert panels.enlarged(small).shape == (250, 300), "small ones are shown larger, pixel by pixel"


def test_colours_are_the_same_in_every_picture_and_the_floor_is_grey() -> None:
    colour = plots.colours(["local", "gcml", "pooled", "fedavg"])
    assert len(set(colour.values())) == 4
    assert colour["gcml"] == plots.colours(["gcml", "fedavg"])["gcml"]


def test_a_long_name_is_broken_where_it_may_be_and_loses_nothing() -> None:
    name = "gcml[training.weight_decay=1.0,lambda=0]"
    lines = panels.broken(name, 17).split("\n")
    assert lines == ["gcml[training.", "weight_decay=1.0,", "lambda=0]"]
    assert "".join(lines) == name and panels.broken("fedavg@3", 17) == "fedavg@3"


def test_what_each_method_found_is_counted_over_sites_and_repetitions() -> None:
    def counts(detected: int, missed: int, alarms: int, voxels: int) -> dict[str, Any]:
        found = {"cases": 10, "present": detected + missed, "detected": detected, "missed": missed}
        return {"lesion": {**found, "false_alarms": alarms, "false_alarm_voxels": voxels}}

    def more(hd95: float, without: float) -> dict[str, Any]:
        return {"hd95_per_class": {"lesion": hd95}, "hd95_without_missed": {"lesion": without}}

    cases = {"p": 0.5, "q": 0.6}
    doc = document(
        row("local", 0, "a", cases, counts=counts(3, 2, 1, 900), **more(40.0, 4.0)),
        row("local", 1, "a", cases, counts=counts(4, 1, 0, 0), **more(20.0, 2.0)),
        row("gcml", 0, "a", cases),
    )
    heading, rows = table.found_table(doc)
    assert heading[1:6] == ("class", "detected", "missed", "false alarms", "voxels")
    assert rows == [("local", "lesion", "7 of 10", "3", "1 of 10", "900", "30.0", "3.0")]
    assert "What each method found" in pages.render("comparison_found.html", words=words, **html.found(doc))
    earlier = pages.render("comparison_found.html", words=words, **html.found(TWO_SITES))
    assert not earlier.strip(), "results of an earlier version"


def test_what_each_site_deploys_is_told_in_one_line() -> None:
    line = "alone 0.80, deployed 0.82, gain +0.02 ± 0.01 on 5 patients; personal 0.50, shared 0.50"
    mixed = row("gcml", 1, "a", {"p": 0.5}, split=1, deployed={"name": "mix", "reason": line})
    earlier = row("gcml", 0, "a", {"p": 0.5}, deployed={"name": "mix"})
    heading, rows = table.deployed_table(document(row("local", 0, "a", {"p": 0.5}), earlier, mixed))
    assert rows == [("gcml", "a", "1", "1", line)] and len(heading) == 5
