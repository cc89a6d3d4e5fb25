"""The end of a privacy budget, from the worker's report to status: the site pauses, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gossipseg.core.types import Phase
from gossipseg.ctl.status import pairs
from gossipseg.daemon.control.service import Service
from gossipseg.daemon.runtime import Runtime
from gossipseg.learn import protocol
from gossipseg.wire import documents as doc
from tests.daemon.harness import files_only, running, settled
from tests.daemon.test_runtime import READY, done
from tests.e2e.federation import Federation

SPENT = protocol.Spent(2.5, 1e-5, 40, max_epsilon=3.0)
OVER = protocol.Spent(2.98, 1e-5, 44, max_epsilon=3.0, over=True)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south") as f:
        yield f


def service(runtime: Runtime) -> Service:
    """What answers gossipctl; nothing but status is asked of it here."""
    nothing = {"identity": lambda: None, "stop": lambda _: None, "reload": lambda: ()}
    return Service(runtime, discovery=doc.DiscoveryStatus, **nothing)


async def test_a_spent_budget_pauses_training_with_a_reason(files: Federation) -> None:
    async with running(files) as (r, failures):
        r.worker.on_worker_message(msgspec.structs.replace(READY, spent=protocol.Spent(0.0, 1e-5, 0, 3.0)))
        await settled(r)
        r.worker.on_worker_message(done(1, spent=SPENT))
        await settled(r)
        status = await service(r).status()
        assert (status.epsilon, status.delta, status.max_epsilon) == (2.5, 1e-5, 3.0)
        assert dict(pairs(status))["privacy"] == "epsilon 2.5 spent at delta 1e-05, of 3 at most"
        assert r.node.phase is Phase.TRAINING and not any("privacy" in x for x in status.reasons)
        (note,) = [e for e in r.events.tail(50) if e["event"] == "round_finished"]
        assert (note["epsilon"], note["delta"]) == (2.5, 1e-5) and "spent" not in note

        r.worker.on_worker_message(done(2, spent=OVER))
        await settled(r)
        assert r.node.phase is Phase.PAUSED and r.node.round == 2 and failures == []
        status = await service(r).status()
        assert status.epsilon == 2.98 and any("privacy budget (max_epsilon 3.0)" in x for x in status.reasons)
        (note,) = [e for e in r.events.tail(50) if e["event"] == "privacy_budget_spent"]
        assert (note["epsilon"], note["max_epsilon"], note["steps"]) == (2.98, 3.0, 44)


async def test_a_site_without_it_says_nothing_of_privacy(files: Federation) -> None:
    async with running(files) as (r, _):
        r.worker.on_worker_message(READY)
        await settled(r)
        status = await service(r).status()
        assert status.epsilon is status.delta is None and "privacy" not in dict(pairs(status))
