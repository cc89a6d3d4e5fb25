"""What the worker reports, in its order: deaths, warnings, and the end of a privacy budget."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from gossipseg.core import events
from gossipseg.core.types import Phase
from gossipseg.ctl.status import pairs
from gossipseg.learn import protocol
from tests.daemon.harness import READY, done, running, service, settled
from tests.e2e.federation import Federation

SPENT = protocol.Spent(2.5, 1e-5, 40, max_epsilon=3.0)
OVER = protocol.Spent(2.98, 1e-5, 44, max_epsilon=3.0, over=True)


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


async def test_a_worker_that_waits_for_its_data_has_not_died_of_a_model(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, _):
        r.worker.on_worker_message(READY)
        await settled(r)
        seen, inject = list[events.Event](), r.inject
        monkeypatch.setattr(r, "inject", lambda event: (seen.append(event), inject(event)))
        r.worker.on_worker_waiting("the share is away")
        r.worker.on_worker_lost("killed", False)
        await settled(r)
        lost = [event for event in seen if isinstance(event, events.WorkerLost)]
        assert [event.waits for event in lost] == [True, False]


async def test_a_death_does_not_overtake_the_round_finished_before_it(
    files: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(files) as (r, failures):
        r.worker.on_worker_message(READY)
        await settled(r)
        assert r.node.phase is Phase.TRAINING
        go_on, real = threading.Event(), r.store.adopt
        monkeypatch.setattr(r.store, "adopt", lambda file: (go_on.wait(10), real(file))[1])
        exported = tmp_path / "round-1.safetensors"
        exported.write_bytes(b"model")
        r.worker.on_worker_message(done(1, export=protocol.Export(str(exported), 8, 1)))
        r.worker.on_worker_lost("killed", False)
        r.worker.on_worker_message(msgspec.structs.replace(READY, round=1, steps=1))
        go_on.set()
        await settled(r)
        assert (r.node.round, r.node.phase, failures) == (1, Phase.TRAINING, [])
        names = [e["event"] for e in r.events.tail(50)]
        assert names.index("round_finished") < names.index("worker_lost")
        assert "dropped_event" not in names


async def test_a_warning_of_the_worker_stays_until_it_is_withdrawn(files: Federation) -> None:
    async with running(files) as (r, _):
        r.worker.on_worker_message(msgspec.structs.replace(READY, warning="a damaged checkpoint"))
        await settled(r)
        assert list(r.training.warnings.values()) == ["a damaged checkpoint"]
        r.worker.on_worker_message(done(1, warning="checkpoint not written: disk full"))
        await settled(r)  # the node's own state was written meanwhile
        assert list(r.training.warnings.values()) == ["checkpoint not written: disk full"]
        r.worker.on_worker_message(done(2))
        await settled(r)
        assert r.training.warnings == {}


async def test_what_is_said_of_a_choice_after_a_restart_is_told(files: Federation) -> None:
    chosen = protocol.MixChosen("mix", "personal 0.50, shared 0.50", 0.5, 0.25, "checkpoint not written")
    async with running(files) as (r, _):
        r.worker.on_worker_message(
            msgspec.structs.replace(READY, deployed_reason="of yesterday", dice_val=0.9)
        )
        r.worker.on_worker_message(chosen)
        await settled(r)
        assert (r.training.deployed_reason, r.training.dice_val) == (chosen.deployed_reason, 0.5)
        assert r.training.activity == "finished" and r.training.dice_test == 0.25
        assert r.training.warnings == {"personal": "checkpoint not written"}
        assert "mix_chosen" in {e["event"] for e in r.events.tail(100)}
        r.worker.on_worker_message(done(2))
        await settled(r)
        assert r.training.warnings == {}, "the round's checkpoint was written"


async def test_after_a_copy_status_does_not_tell_of_the_model_before(files: Federation) -> None:
    swap = protocol.Swap("south", 1)
    async with running(files) as (r, _):
        r.worker.on_worker_message(
            msgspec.structs.replace(READY, deployed="mix", deployed_reason="of yesterday", dice_val=0.9)
        )
        r.worker.on_worker_message(protocol.SwapApplied(swap, steps=40))
        await settled(r)
        assert (r.training.deployed_reason, r.training.dice_val) == ("of yesterday", 0.9)
        told = protocol.SwapApplied(
            swap, copied=True, deployed="shared", deployed_reason="shared alone, because it is new"
        )
        r.worker.on_worker_message(msgspec.structs.replace(told, reason="not_saved"))
        await settled(r)
        assert r.training.deployed_reason == "of yesterday", "it was taken back"
        r.worker.on_worker_message(told)
        await settled(r)
        assert (r.training.deployed, r.training.deployed_reason) == ("shared", told.deployed_reason)
        assert r.training.dice_val is None
