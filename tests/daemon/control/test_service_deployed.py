"""Which model a site with a choice deploys, from the worker's reports to status."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gossipseg.core import effects
from gossipseg.ctl.status import pairs
from gossipseg.learn import protocol
from tests.daemon.harness import READY, done, files_only, running, service, settled
from tests.e2e.federation import Federation

WHY = "0.8100 without exchange, 0.7000 with it; better by more than 2 standard errors"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south") as f:
        yield f


async def test_status_says_which_model_is_deployed_and_why(files: Federation) -> None:
    async with running(files) as (r, _):
        restored = {"deployed": "averaged", "deployed_reason": "few cases"}
        r.worker.on_worker_message(msgspec.structs.replace(READY, **restored))
        await settled(r)
        status = await service(r).status()
        assert (status.deployed, status.deployed_reason) == ("averaged", "few cases"), "a finished site, too"
        text = dict(pairs(status))["deployed"]
        assert text == "the mean of the models with and without exchange (few cases)"

        r.worker.on_worker_message(done(1, deployed="shadow", deployed_reason=WHY))
        await settled(r)
        status = await service(r).status()
        assert (status.deployed, status.to_dict()["deployed_reason"]) == ("shadow", WHY)
        assert dict(pairs(status))["deployed"] == f"the model trained without exchange alone ({WHY})"
        (note,) = [e for e in r.events.tail(50) if e["event"] == "round_finished"]
        assert (note["deployed"], note["deployed_reason"]) == ("shadow", WHY)


@pytest.mark.parametrize(
    ("deployed", "words"),
    [
        ("own", "this site's own model alone"),
        ("ensemble", "this site's own model together with models of other sites"),
    ],
)
async def test_status_says_whether_other_sites_models_predict(
    files: Federation, deployed: str, words: str
) -> None:
    async with running(files) as (r, _):
        r.worker.on_worker_message(done(1, deployed=deployed, deployed_reason="so"))
        await settled(r)
        assert dict(pairs(await service(r).status()))["deployed"] == f"{words} (so)"


async def test_the_worker_is_told_who_is_listed_now(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, _):
        sent: list[protocol.StartRound] = []
        monkeypatch.setattr(r.worker._supervisor, "send", sent.append)
        r.worker.start_round(effects.StartRound(3, None, False))
        fewer = [s for s in r.config.federation.sites if s.name != "south"]
        federation = dataclasses.replace(r.config.federation, sites=fewer)
        monkeypatch.setattr(r, "config", dataclasses.replace(r.config, federation=federation))
        r.worker.start_round(effects.StartRound(4, None, False))
        assert [order.listed for order in sent] == [["north", "south"], ["north"]]


async def test_a_site_without_a_choice_says_nothing_of_it(files: Federation) -> None:
    async with running(files) as (r, _):
        for message in (READY, done(1)):
            r.worker.on_worker_message(message)
            await settled(r)
        status = await service(r).status()
        assert status.deployed == status.deployed_reason == "" and "deployed" not in dict(pairs(status))
