"""The messages of a coordinated round as protobuf, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from gossipseg.core import messages as m
from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.codec.parts import (
    MessageKind,
    attempt,
    code,
    count,
    fingerprint,
    hash_or_nothing,
    optional_model,
    optional_proposal,
    read_kind,
    read_proposal,
    read_tally,
    read_verdict,
    require,
    sub,
    write_kind,
    write_model,
    write_proposal,
    write_tally,
    write_verdict,
)

_STORED_OF: dict[int, Literal["stored", "missing", "reject"]] = {
    pb.STORE_VERDICT_STORED: "stored",
    pb.STORE_VERDICT_MISSING: "missing",
    pb.STORE_VERDICT_REJECT: "reject",
}
_STORED: dict[str, Any] = {word: number for number, word in _STORED_OF.items()}


def _run(x: Any) -> tuple[str, str]:
    return fingerprint(x.run, "run"), fingerprint(x.sites, "sites")


def _promised(x: Any) -> int:
    return attempt(x.promised) if x.HasField("promised") else -1


def _prepare(x: m.Prepare) -> Any:
    return pb.PrepareRequest(
        run=x.run,
        sites=x.sites,
        round=x.round,
        attempt=x.attempt,
        tally=write_tally(x.tally) if x.tally else None,
    )


def _read_prepare(x: Any) -> m.Prepare:
    tally = read_tally(x.tally) if x.HasField("tally") else None
    return m.Prepare(*_run(x), count(x.round, "round"), attempt(x.attempt), tally)


def _prepare_reply(x: m.PrepareReply) -> Any:
    return pb.PrepareResponse(
        promise=x.promise,
        promised=x.promised if x.promised >= 0 else None,
        reason=x.reason,
        accepted=write_proposal(x.accepted) if x.accepted else None,
        committed=write_proposal(x.committed) if x.committed else None,
        update=write_model(x.update) if x.update else None,
        waiting_for=x.waiting_for,
    )


def _read_prepare_reply(x: Any) -> m.PrepareReply:
    return m.PrepareReply(
        x.promise,
        _promised(x),
        code(x.reason),
        optional_proposal(x, "accepted"),
        optional_proposal(x, "committed"),
        optional_model(x, "update"),
        code(x.waiting_for),
    )


def _fetch(x: m.Fetch) -> Any:
    return pb.FetchRequest(
        run=x.run,
        sites=x.sites,
        kind=write_kind(x.kind),
        round=x.round,
        attempt=x.attempt,
        hash=x.hash,
    )


def _read_fetch(x: Any) -> m.Fetch:
    hash = hash_or_nothing(x.hash)
    return m.Fetch(*_run(x), read_kind(x.kind), count(x.round, "round"), attempt(x.attempt), hash)


def _fetch_reply(x: m.FetchReply) -> Any:
    return pb.FetchResponse(
        verdict=write_verdict(x.verdict),
        reason=x.reason,
        model=write_model(x.model) if x.model else None,
        proposal=write_proposal(x.proposal) if x.proposal else None,
    )


def _read_fetch_reply(x: Any) -> m.FetchReply:
    model, proposal = optional_model(x, "model"), optional_proposal(x, "proposal")
    return m.FetchReply(read_verdict(x.verdict), code(x.reason), model, proposal)


def _proposed(message: Any, x: m.Accept | m.Commit) -> Any:
    return message(run=x.run, sites=x.sites, proposal=write_proposal(x.proposal))


def _read_proposed(kind: Callable[..., Any], x: Any) -> Any:
    return kind(*_run(x), read_proposal(sub(x, "proposal")))


def _accept_reply(x: m.AcceptReply) -> Any:
    return pb.AcceptResponse(
        verdict=_STORED[x.verdict],
        reason=x.reason,
        promised=x.promised if x.promised >= 0 else None,
        committed=write_proposal(x.committed) if x.committed else None,
    )


def _read_accept_reply(x: Any) -> m.AcceptReply:
    require(x.verdict in _STORED_OF, f"unknown verdict {x.verdict}")
    committed = optional_proposal(x, "committed")
    return m.AcceptReply(_STORED_OF[x.verdict], code(x.reason), _promised(x), committed)


PAIRS: tuple[tuple[type, type, MessageKind], ...] = (
    (
        m.Prepare,
        m.PrepareReply,
        MessageKind(
            "Prepare",
            _prepare,
            _read_prepare,
            pb.PrepareRequest,
            _prepare_reply,
            _read_prepare_reply,
            pb.PrepareResponse,
        ),
    ),
    (
        m.Fetch,
        m.FetchReply,
        MessageKind(
            "Fetch",
            _fetch,
            _read_fetch,
            pb.FetchRequest,
            _fetch_reply,
            _read_fetch_reply,
            pb.FetchResponse,
        ),
    ),
    (
        m.Accept,
        m.AcceptReply,
        MessageKind(
            "Accept",
            lambda x: _proposed(pb.AcceptRequest, x),
            lambda x: _read_proposed(m.Accept, x),
            pb.AcceptRequest,
            _accept_reply,
            _read_accept_reply,
            pb.AcceptResponse,
        ),
    ),
    (
        m.Commit,
        m.CommitReply,
        MessageKind(
            "Commit",
            lambda x: _proposed(pb.CommitRequest, x),
            lambda x: _read_proposed(m.Commit, x),
            pb.CommitRequest,
            lambda x: pb.CommitResponse(known=x.verdict == "known", reason=x.reason),
            lambda x: m.CommitReply("known" if x.known else "reject", code(x.reason)),
            pb.CommitResponse,
        ),
    ),
)
