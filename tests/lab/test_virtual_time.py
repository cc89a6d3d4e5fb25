"""Virtual time: hours pass at once, in order, and a stand-still is an error and no hang."""

from __future__ import annotations

import asyncio
import time

import pytest

from gossipseg.errors import LocalError
from gossipseg.lab.simulation import virtual_time


def test_hours_pass_at_once_and_in_order() -> None:
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> float:
        await asyncio.gather(sleeper("c", 7200.0), sleeper("a", 0.25), sleeper("b", 3600.0))
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert virtual_time.run(main()) == 7200.0
    assert seen == [("a", 0.25), ("b", 3600.0), ("c", 7200.0)]
    assert time.monotonic() - began < 5


def test_a_timeout_comes_when_its_virtual_time_has_come() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000.0):
                await asyncio.get_running_loop().create_future()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(main()) == 1000.0


def test_equal_deadlines_run_in_the_order_in_which_they_were_set() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        loop = asyncio.get_running_loop()
        for i in range(50):
            loop.call_at(10.0 + i % 2, order.append, i)
        await asyncio.sleep(20.0)
        return order

    first, again = virtual_time.run(main()), virtual_time.run(main())
    assert first == again
    assert [i % 2 for i in first] == [0] * 25 + [1] * 25


def test_waiting_for_nothing_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(LocalError, match="nothing is due"):
        virtual_time.run(main())
