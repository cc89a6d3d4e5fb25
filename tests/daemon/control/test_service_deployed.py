"""Which model a site with a choice deploys, from the worker's reports to status."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gossipseg.core import effects
from gossipseg.ctl.status import pairs
from gossipseg.daemon.worker.process import WorkerSupervisor
from gossipseg.learn import protocol
from gossipseg.nets.params import NetworkParams
from tests.daemon.harness import READY, done, files_only, running, service, settled
from tests.e2e.federation import Federation

WHY = "alone 0.8100, deployed 0.8300, gain +0.0200 ± 0.0050 on 9 patients; personal 0.42, shared 0.58"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south") as f:
        yield f


async def test_status_says_which_model_is_deployed_and_why(files: Federation) -> None:
    async with running(files) as (r, _):
        restored = {"deployed": "shared", "deployed_reason": "few rounds"}
        r.worker.on_worker_message(msgspec.structs.replace(READY, **restored))
        await settled(r)
        status = await service(r).status()
        assert (status.deployed, status.deployed_reason) == ("shared", "few rounds"), "a finished site, too"
        text = dict(pairs(status))["deployed"]
        assert text == "the shared model alone: few rounds"

        r.worker.on_worker_message(done(1, deployed="mix", deployed_reason=WHY))
        await settled(r)
        status = await service(r).status()
        assert (status.deployed, status.to_dict()["deployed_reason"]) == ("mix", WHY)
        assert dict(pairs(status))["deployed"] == f"the personal and the shared model together: {WHY}"
        (note,) = [e for e in r.events.tail(50) if e["event"] == "round_finished"]
        assert (note["deployed"], note["deployed_reason"]) == ("mix", WHY)


async def test_the_worker_is_told_who_is_listed_now(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, _):
        sent: list[protocol.StartRound] = []
        monkeypatch.setattr(WorkerSupervisor, "send", lambda _, order: sent.append(order))
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


async def test_status_names_the_personal_models_own_network(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, _):
        status = await service(r).status()
        assert status.personal_network == "" and "personal" not in dict(pairs(status))["learning"]
        own = dataclasses.replace(r.config.site, personal_network=NetworkParams("segresnet", 8))
        monkeypatch.setattr(r, "config", dataclasses.replace(r.config, site=own))
        status = await service(r).status()
        assert status.personal_network == "segresnet, width 8"
        assert dict(pairs(status))["learning"].endswith("; the personal model: segresnet, width 8")
