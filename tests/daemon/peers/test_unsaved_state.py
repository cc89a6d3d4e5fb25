"""Promises of a site whose state cannot be saved."""

from __future__ import annotations

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.types import Proposal
from gossipseg.errors import LocalError
from gossipseg.store import StateFile
from tests.core.rig import model
from tests.daemon.harness import perform, running
from tests.e2e.federation import Federation

PROPOSAL = Proposal(1, 0, model("g"), ("north", "south"))
BINDING: list[ms.Request] = [
    ms.Prepare("run", "sites", 1, 0),
    ms.Accept("run", "sites", PROPOSAL),
    ms.Commit("run", "sites", PROPOSAL),
]


async def test_a_site_whose_state_cannot_be_saved_binds_itself_to_nothing(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promise that a crash would make it forget is not given: two global models could come of it."""
    async with running(files) as (r, _):
        heard: list[ev.Event] = []
        answered: list[ms.Reply] = []
        monkeypatch.setattr(r, "inject", heard.append)
        monkeypatch.setattr(r.intake, "respond", lambda token, body: answered.append(body))

        replies = [fx.Respond(1, ms.PrepareReply(True, 3)), fx.Respond(2, ms.AcceptReply("stored"))]
        full = LocalError("disk full")
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, "save", lambda *_: (_ for _ in ()).throw(full))
            await perform(r, fx.Persist(fx.Snapshot()), *replies)
        await perform(r, *(fx.Request(i, "south", body, 1.0) for i, body in enumerate(BINDING)))
        assert answered == [ms.PrepareReply(False, 3, "not_saved"), ms.AcceptReply("reject", "not_saved")]
        assert [e.id for e in heard if isinstance(e, ev.RequestFailed)] == [0, 1, 2]

        harmless = [ms.PrepareReply(False, 3, "behind"), ms.AcceptReply("missing"), ms.FetchReply("busy")]
        answered.clear()
        await perform(r, *(fx.Respond(i, body) for i, body in enumerate(harmless)))
        assert answered == harmless

        answered.clear()
        await perform(r, fx.Persist(fx.Snapshot()), *replies)
        assert answered == [reply.body for reply in replies]
