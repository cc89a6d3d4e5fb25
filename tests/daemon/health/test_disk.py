"""The watch over the disk: how long it takes to make something durable."""

from __future__ import annotations

import pytest

from gossipseg.daemon.health.disk import DiskWatch
from gossipseg.errors import LocalError


async def test_a_slow_disk_is_told_and_forgotten_in_time() -> None:
    now = 0.0
    watch = DiskWatch("/srv/state", lambda: now)
    assert watch.problem() == ""
    with watch.timing("node.json"):
        now = 1.0
        assert watch.problem() == ""
        now = 3.0
        assert "node.json is being written for 3 s" in watch.problem() and "/srv/state" in watch.problem()
        now = 4.0
    assert "to write node.json took 4.0 s" in watch.problem() and watch.last_slow_s() == 4.0
    now = 700.0
    assert watch.problem() == "" and watch.last_slow_s() == 0.0
    with pytest.raises(LocalError):
        await watch.beside("x", lambda: (_ for _ in ()).throw(LocalError("y")).__next__())
    assert watch._under_way == {}
