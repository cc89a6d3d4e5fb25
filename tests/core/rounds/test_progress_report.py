"""What every site can show of the round that one of them leads (progress_report.py, status.py)."""

from __future__ import annotations

from dataclasses import replace

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.rounds.status import RoundsView, SiteRow
from gossipseg.core.types import UpdateTally
from tests.core.rig import left
from tests.core.rounds_bench import (
    LIST,
    PARAMS,
    RUN,
    accept,
    bench,
    delivers,
    leads,
    prepare,
    proposal,
    state_of,
    trained,
    view,
)
from tests.sim.simulator import Simulator
from tests.sim.test_rounds import federation, on_disk, state, until_led


def told(attempt: int = 1, *, deadline_ms: int | None = 60_000, delivered: tuple[str, ...] = ("me", "z"),
         left_out: tuple[tuple[str, str], ...] = (("b", "no_answer"),)) -> ms.Prepare:  # fmt: skip
    return replace(prepare(attempt), tally=UpdateTally(deadline_ms, delivered, left_out))


# ---------------------------------------------------------------- what a coordinator tells


def test_a_coordinator_tells_who_has_delivered_and_how_long_the_others_have() -> None:
    rig = trained()
    first, second = leads(rig)
    assert first.body.tally == UpdateTally(None, ("me",), ())
    delivers(rig, first)
    rig.answer(second, ms.PrepareReply(True, 0, waiting_for="training"))
    assert view(rig).deadline_s == PARAMS.deadline_s
    assert (view(rig).delivered, view(rig).missing) == (("b", "me"), (SiteRow("z", "training"),))
    effects = rig.until(rig.now + PARAMS.poll_interval_s)
    again = [e.body for e in effects if isinstance(e, fx.Request) and isinstance(e.body, ms.Prepare)]
    assert again[-1].tally == UpdateTally(
        round(1000 * (PARAMS.deadline_s - PARAMS.poll_interval_s)), ("b", "me")
    )


def test_with_the_updates_chosen_no_deadline_runs() -> None:
    rig = trained()
    first, second = leads(rig)
    delivers(rig, first)
    rig.answer(second, ms.PrepareReply(True, 0, waiting_for="paused"))
    assert view(rig).state == "aggregating" and rig.of(fx.Aggregate)
    seen = view(rig)
    assert (seen.deadline_s, seen.delivered) == (None, ("b", "me"))
    assert seen.missing == (SiteRow("z", "left_out", "paused"),)


# ---------------------------------------------------------------- what the others show


def test_what_the_coordinator_has_told_is_shown_as_its_word_and_grows_old() -> None:
    rig = bench()
    before = view(rig)
    assert (before.delivered, before.deadline_s, before.told_s) == (None, None, None)
    rig.asks("z", told())
    rig.until(rig.now + 4)
    rig.do(ev.Tick())
    seen = view(rig)
    assert (seen.coordinator, seen.leading, seen.attempt) == ("z", False, 1)
    assert (seen.delivered, seen.deadline_s, seen.told_s) == (("me", "z"), 56.0, 4.0)
    assert seen.missing == (SiteRow("b", "left_out", "no_answer"),)
    assert [state_of(rig, s) for s in ("b", "me", "z")] == [
        ("left_out", "no_answer"), ("delivered", ""), ("delivered", ""),
    ]  # fmt: skip


def test_a_deadline_beyond_the_settings_is_cut_and_strangers_are_not_shown() -> None:
    rig = bench()
    rig.asks("z", told(deadline_ms=2**53 - 1, delivered=("x", "z"), left_out=(("y", "dead"),)))
    seen = view(rig)
    assert (seen.deadline_s, seen.delivered) == (PARAMS.deadline_s, ("z",))
    assert {r.site for r in seen.rows} == {"b", "me", "z"} == {r.site for r in seen.missing} | {"z"}


def test_a_proposal_tells_who_is_in_it_and_ends_the_deadline() -> None:
    rig = bench()
    rig.asks("z", told())
    rig.asks("z", accept(proposal(1)))
    seen = view(rig)
    assert (seen.deadline_s, seen.delivered) == (None, ("b", "z"))
    assert seen.missing == (SiteRow("me", "left_out", "late"),) and state_of(rig, "me") == (
        "left_out",
        "late",
    )


def test_nothing_is_known_from_a_coordinator_of_an_older_version() -> None:
    rig = bench()
    rig.asks("z", prepare(1))
    assert (view(rig).coordinator, view(rig).delivered, view(rig).deadline_s) == ("z", None, None)


def test_the_word_of_an_attempt_that_is_over_is_not_shown() -> None:
    rig = bench()
    rig.asks("z", told(1))
    rig.hears("z", left("z"))
    assert (view(rig).coordinator, view(rig).delivered) == ("b", None)
    assert state_of(rig, "z") == ("left_out", "left") and view(rig).missing == (
        SiteRow("z", "left_out", "left"),
    )


def test_who_is_not_followed_is_not_quoted() -> None:
    rig = bench()
    rig.asks("b", told(1))  # z's to lead
    assert view(rig).delivered is None
    rig.asks("z", ms.Prepare(RUN, LIST, 7, 1, told().tally))
    assert view(rig).delivered is None


# ---------------------------------------------------------------- a federation of real cores


def views(sim: Simulator) -> dict[str, RoundsView]:
    found = {site: state(node).rounds_view for site, node in sim.nodes.items()}
    return {site: seen for site, seen in found.items() if seen is not None}


def test_every_site_shows_the_deadline_while_updates_are_gathered_and_none_afterwards() -> None:
    """Three sites, of which one trains long: the others wait for it, and all can say so."""
    sim = federation(3, round_s=lambda i: 25.0 if i == 2 else 6.0)
    leader = until_led(sim, round=3)
    number = state(sim.nodes[leader]).rounds_view.round  # type: ignore[union-attr]
    collection: dict[str, list[RoundsView]] = {site: [] for site in sim.nodes}
    while on_disk(sim) < number:
        sim.step()
        own = views(sim)[leader]
        if (own.leading, own.deadline_s is not None) == (True, True):
            for site, seen in views(sim).items():
                collection[site].append(seen)
    for site in set(sim.nodes) - {leader}:
        told = [v for v in collection[site] if v.deadline_s is not None]
        assert told, f"{site} never shows the deadline"
        last, truth = told[-1], collection[leader][-1]
        assert last.round == number and last.told_s is not None and truth.deadline_s is not None
        assert abs((last.deadline_s or 0.0) - truth.deadline_s) < 1.0
        assert last.delivered == truth.delivered and "s0002" not in truth.delivered
        assert [r.site for r in last.missing] == ["s0002"]
    while any(v.round == number for v in views(sim).values()):
        sim.step()
    assert all(v.deadline_s is None for v in views(sim).values() if v.round == number + 1)
