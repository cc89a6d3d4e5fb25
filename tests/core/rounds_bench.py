"""One site in the rounds under a rotating coordinator, on the bench: me among b, me and z.

In round 1 attempt 0 is me's to lead, 1 is z's and 2 is b's. What must not be here: tests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core.params import RoundsParams
from gossipseg.core.rounds.quorum import QuorumConfig, run_of
from gossipseg.core.rounds.status import RoundsView
from gossipseg.core.types import ModelRef, Proposal
from tests.core.rig import PRINT, TRAINING, Rig, bare, model

SITES = ("b", "me", "z")
RUN = run_of("f", PRINT)
LIST = QuorumConfig.of(SITES, None).key
PARAMS = RoundsParams(patience_s=20.0, deadline_s=100.0, alone_after_s=200.0)
AT_1 = replace(TRAINING, round=0, committed=0)


def common(name: str = "g1", round: int = 1) -> ModelRef:
    return replace(model(name, round=round), kind="global")


def update(name: str, round: int = 1) -> ModelRef:
    return replace(model(name, round=round), kind="update")


def proposal(attempt: int = 1, name: str = "g1", round: int = 1, **changes: Any) -> Proposal:
    given = {"contributors": ("b", "z"), "absent": (("me", "late"),), **changes}
    return Proposal(round, attempt, common(name, round), **given)


def prepare(attempt: int, round: int = 1, run: str = RUN, sites: str = LIST) -> ms.Prepare:
    return ms.Prepare(run, sites, round, attempt)


def accept(of: Proposal) -> ms.Accept:
    return ms.Accept(RUN, LIST, of)


def fetch(hash: str, kind: Any = "global", round: int = 1, attempt: int = 1) -> ms.Fetch:
    return ms.Fetch(RUN, LIST, kind, round, attempt, hash)


def bench(ready: bool = True, **changes: Any) -> Rig:
    """me, met with b and z; with its worker up and in its first round."""
    given = {"exchange": "rounds", "rounds_params": PARAMS, **changes}
    rig = Rig(("b", "z"), **given).start()
    rig.meet("b", "z", info=AT_1)
    if ready:
        rig.ready(round=0, steps=0)
    return rig


def trained(**changes: Any) -> Rig:
    """bench, with its first round done and its update there."""
    rig = bench(**changes)
    rig.round_done(model("mine", round=1))
    return rig


def order(rig: Rig) -> fx.StartRound:
    orders = rig.of(fx.StartRound)
    assert len(orders) == 1, rig.out
    return orders[0]


def view(rig: Rig) -> RoundsView:
    seen = rig.node.rounds_view
    assert seen is not None
    return seen


def state_of(rig: Rig, site: str) -> tuple[str, str]:
    return next((r.state, r.reason) for r in view(rig).rows if r.site == site)


def leads(rig: Rig) -> list[fx.Request]:
    """What its Prepare requests were when it began to lead."""
    assert rig.notes("round_led"), rig.out
    return rig.requests(ms.Prepare)


def asked(rig: Rig, frm: str, body: ms.Request) -> Any:
    rig.asks(frm, body)
    return rig.reply()


def arrives(rig: Rig, frm: str, of: Proposal) -> None:
    """The site has asked for its file, and it comes."""
    request = rig.request(ms.Fetch, frm)
    assert request.body.hash == of.model.hash
    assert rig.node.expects(frm, of.model.hash) == of.model
    rig.answer(request, ms.FetchReply("accept", "", of.model))
    rig.do(ev.TransferBegan(frm, of.model.hash))
    rig.do(ev.ModelArrived(frm, of.model))


def with_round_1() -> fx.Snapshot:
    """What is on a site's disk that has the first global model."""
    rig = bench()
    rig.asks("z", ms.Commit(RUN, LIST, proposal(1)))
    arrives(rig, "z", proposal(1))
    return rig.of(fx.Persist)[-1].snapshot


def delivers(rig: Rig, asked: fx.Request) -> None:
    """Who was asked promises, has an update, and sends it."""
    made = update(f"of {asked.to}")
    rig.answer(asked, ms.PrepareReply(True, 0, update=made))
    rig.answer(rig.request(ms.Fetch, asked.to), ms.FetchReply("accept", "", made))
    rig.do(ev.ModelArrived(asked.to, made))


def gathered(*, refused: tuple[tuple[str, str], ...] = ()) -> Rig:
    """me leads round 1, and has let its worker combine the updates of all three."""
    rig = trained()
    first, second = leads(rig)
    delivers(rig, first)
    assert not rig.of(fx.Aggregate), "z may still deliver"
    assert view(rig).deadline_s == PARAMS.deadline_s
    delivers(rig, second)
    sites = tuple((s, update(u)) for s, u in (("b", "of b"), ("me", "mine"), ("z", "of z")))
    assert bare(rig.of(fx.Aggregate)) == [fx.Aggregate(1, 0, sites)]
    there = tuple(s for s in SITES if s not in dict(refused))
    rig.do(ev.Aggregated(1, 0, replace(common(), kind="global"), there, refused))
    return rig
