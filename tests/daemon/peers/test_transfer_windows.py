"""Waiting for the hours in which models may go out, on a clock that is given."""

from __future__ import annotations

import asyncio

import pytest

from gossipseg.daemon.peers.transfer_windows import follow_windows, local_second_of_day, window_open
from gossipseg.errors import PeerUnreachable

H = 3600


class Wall:
    """A clock on the wall that moves only in sleeps."""

    def __init__(self, second_of_day: float) -> None:
        self.at_s = second_of_day
        self.told: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.at_s = (self.at_s + seconds) % 86_400

    def wait(self, windows: list[str], timeout_s: float) -> None:
        asyncio.run(
            window_open(
                windows,
                timeout_s,
                "south",
                self.told.append,
                second_of_day=lambda: self.at_s,
                sleep=self.sleep,
            )
        )


def test_it_begins_at_once_within_a_window_and_without_any() -> None:
    for windows in ([], ["22:00-06:00"]):
        wall = Wall(23 * H)
        wall.wait(windows, 10.0)
        assert wall.at_s == 23 * H and wall.told == []


def test_it_waits_for_the_opening_and_says_until_when() -> None:
    wall = Wall(21.5 * H)
    wall.wait(["22:00-06:00"], H)
    assert wall.at_s == 22 * H
    assert set(wall.told) == {"waits for the window until 22:00"}


def test_it_gives_up_when_the_promise_has_lapsed() -> None:
    wall = Wall(12 * H)
    with pytest.raises(PeerUnreachable) as e:
        wall.wait(["22:00-06:00"], H)
    assert (e.value.reason, e.value.detail) == ("window_closed", "waits for the window until 22:00")
    assert wall.at_s == 13 * H


def test_a_clock_put_forward_is_noticed_within_a_minute() -> None:
    wall = Wall(12 * H)
    asleep: list[float] = []

    async def jump(seconds: float) -> None:
        asleep.append(seconds)
        wall.at_s = 22.5 * H

    wall.sleep = jump  # type: ignore[method-assign]
    wall.wait(["22:00-06:00"], 10 * H)
    assert asleep == [60.0]


@pytest.mark.parametrize(("change_s", "opens_after_s"), [(H, 0.5 * H), (-H, 2.5 * H)])
def test_summer_time_begins_and_ends_while_it_waits(change_s: float, opens_after_s: float) -> None:
    """From 01:30 to a window at 03:00, over 02:00, when the clock is put forward, or back once from 03:00."""
    wall, passed, changed = Wall(1.5 * H), 0.0, False
    at = 2 * H if change_s > 0 else 3 * H - 30

    async def sleep(seconds: float) -> None:
        nonlocal passed, changed
        passed += seconds
        wall.at_s += seconds
        if not changed and wall.at_s >= at:
            changed, wall.at_s = True, wall.at_s + change_s

    wall.sleep = sleep  # type: ignore[method-assign]
    wall.wait(["03:00-04:00"], 10 * H)
    assert passed == pytest.approx(opens_after_s, abs=61.0)


def test_the_wall_clock_is_read_as_local_time() -> None:
    assert 0 <= local_second_of_day() < 86_400


def told_over(windows: list[str], begin_s: float, hours: float) -> list[tuple[float, str]]:
    """(hour of the day, next opening) of each word of follow_windows."""
    wall, told, left_s = Wall(begin_s), list[tuple[float, str]](), hours * H

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        nonlocal left_s
        left_s -= seconds
        if left_s < 0:
            raise Enough
        await wall.sleep(seconds)

    def tell(opens: str) -> None:
        told.append((round(wall.at_s / H, 2), opens))

    with pytest.raises(Enough):
        asyncio.run(follow_windows(windows, tell, second_of_day=lambda: wall.at_s, sleep=sleep))
    return told


def test_each_change_is_told_once_and_at_its_time() -> None:
    assert told_over(["22:00-06:00"], 12 * H, 30) == [
        (12.0, "22:00"),
        (22.0, ""),
        (6.0, "22:00"),
    ]
    assert told_over(["22:00-06:00", "12:30-13:00"], 23 * H, 24) == [
        (6.0, "12:30"),
        (12.5, ""),
        (13.0, "22:00"),
        (22.0, ""),
    ]
    assert told_over(["22:00-24:00", "00:00-06:00"], 23 * H, 4) == [], "open all the time"


def test_without_windows_nothing_is_told() -> None:
    asyncio.run(follow_windows([], lambda _: pytest.fail("told")))
