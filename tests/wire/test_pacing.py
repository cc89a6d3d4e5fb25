"""The rate and the hours of outgoing models, over a clock that is given."""

from __future__ import annotations

import asyncio
import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.errors import ConfigError
from gossipseg.wire.pacing import DAY_S, Throttle, TokenBucket, Windows
from tests.wire.harness import federation, make_identities

H = 3600


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    bucket = TokenBucket(100, 50, now_s=0.0)
    assert bucket.take(50, 0.0) == 0
    assert bucket.take(100, 0.0) == pytest.approx(1.0)
    assert bucket.take(50, 0.5) == pytest.approx(1.0)  # 0.5 s of the debt before it are left
    assert bucket.take(50, 100.0) == 0  # a long pause has filled it, and not overfilled it
    assert bucket.take(10, 100.0) == pytest.approx(0.1)


def test_a_clock_that_goes_back_gives_no_credit() -> None:
    bucket = TokenBucket(100, 50, now_s=10.0)
    bucket.take(50, 10.0)
    assert bucket.take(100, 5.0) == pytest.approx(1.0)
    assert bucket.take(100, 10.0) == pytest.approx(2.0)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1, max_size=60))
def test_never_more_than_rate_and_burst(asked: list[tuple[int, float]]) -> None:
    bucket, now_s, sent = TokenBucket(1000, 400, now_s=0.0), 0.0, 0
    for size, pause_s in asked:
        now_s += pause_s
        now_s += bucket.take(size, now_s)
        sent += size
        assert sent <= 1000 * now_s + 400 + 1e-3


@pytest.mark.parametrize("streams", [2, 5])
def test_streams_side_by_side_share_the_rate_evenly(streams: int) -> None:
    bucket, piece = TokenBucket(1000, 100, now_s=0.0), 100
    went, due = [0] * streams, [(0.0, i) for i in range(streams)]
    now_s = 0.0
    while now_s < 100.0:
        now_s, i = heapq.heappop(due)
        due_s = now_s + bucket.take(piece, now_s)
        went[i] += piece
        heapq.heappush(due, (due_s, i))
    assert max(went) - min(went) <= 2 * piece
    assert sum(went) <= 1000 * now_s + (streams + 1) * piece


@pytest.mark.parametrize(
    ("windows", "at", "wait_s", "opens"),
    [
        ([], 12 * H, 0, "12:00"),
        (["22:00-06:00"], 23 * H, 0, "23:00"),
        (["22:00-06:00"], 5 * H, 0, "05:00"),
        (["22:00-06:00"], 6 * H, 16 * H, "22:00"),
        (["22:00-06:00"], 22 * H - 1, 1, "22:00"),
        (["12:00-13:30", "22:00-24:00"], 13.5 * H, 8.5 * H, "22:00"),
        (["12:00-13:30"], 20 * H, 16 * H, "12:00"),
        (["00:00-24:00"], 86_399, 0, "23:59"),
    ],
)
def test_windows_of_the_day(windows: list[str], at: float, wait_s: float, opens: str) -> None:
    parsed = Windows.parse(windows)
    assert parsed.wait_s(at) == wait_s
    assert parsed.opens_at(at) == opens


@given(st.floats(0, DAY_S, exclude_max=True))
def test_after_the_wait_a_window_is_open(at: float) -> None:
    windows = Windows.parse(["22:00-06:00", "12:15-12:45"])
    opened = (at + windows.wait_s(at)) % DAY_S
    assert windows.wait_s(round(opened, 3)) == 0


@pytest.mark.parametrize(
    "text", ["22-6", "22:00", "25:00-06:00", "22:00-06:60", "22:00 - 06:00", "06:00-06:00"]
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ConfigError, match=r"transfers\.windows"):
        Windows.parse([text])


def test_a_transfer_keeps_to_the_rate_and_requests_do_not_wait(tmp_path) -> None:
    clock = Clock()

    async def body() -> None:
        async with federation("grpc", tmp_path, make_identities(tmp_path / "keys")) as f:
            north = f.transports["north"]
            north.throttle = Throttle(100_000, clock, clock.sleep)
            model, path = f.model(1_000_000)
            f.promise("south-2", model)
            begin_s = clock.now_s
            await north.push("south-2", model, path, 30.0)
            assert clock.now_s - begin_s == pytest.approx(10.0, rel=0.05)
            assert f.transports["south-2"].traffic("north").bytes_in >= 1_000_000

    asyncio.run(body())
