"""The messages of a swap as protobuf, and back."""

from __future__ import annotations

from typing import Any, Literal

from gossipseg.core import messages as m
from gossipseg.core.types import ExchangeId, SwapTerms
from gossipseg.wire import peer_pb2 as pb
from gossipseg.wire.codec.parts import (
    MessageKind,
    code,
    code_or_other,
    count,
    read_model,
    read_verdict,
    require,
    signature,
    site_name,
    sub,
    text,
    write_model,
    write_verdict,
)

_SNAPSHOT_OF: dict[int, Literal["accept", "here", "wait", "reject"]] = {
    pb.SNAPSHOT_VERDICT_ACCEPT: "accept",
    pb.SNAPSHOT_VERDICT_HERE: "here",
    pb.SNAPSHOT_VERDICT_WAIT: "wait",
    pb.SNAPSHOT_VERDICT_REJECT: "reject",
}
_SNAPSHOT: dict[str, Any] = {word: number for number, word in _SNAPSHOT_OF.items()}
_STANDING_OF: dict[int, m.SwapStanding] = {
    pb.SWAP_STANDING_OPEN: "open",
    pb.SWAP_STANDING_COMMITTED: "committed",
    pb.SWAP_STANDING_DROPPED: "dropped",
}
_STANDING: dict[str, Any] = {word: number for number, word in _STANDING_OF.items()}
_PLAIN = (
    "federation", "contract", "maker", "partner", "own_cases", "partner_cases", "steps", "round", "behind",
    "one_way", "position", "stage", "living",
)  # fmt: skip


def _write_id(swap: ExchangeId) -> Any:
    return pb.ExchangeId(asker=swap.asker, number=swap.number)


def _read_id(message: Any) -> ExchangeId:
    swap = sub(message, "swap")
    return ExchangeId(site_name(swap.asker), count(swap.number, "number"))


def _write_terms(terms: SwapTerms) -> Any:
    plain = {name: getattr(terms, name) for name in _PLAIN}
    return pb.SwapTerms(swap=_write_id(terms.swap), signature=bytes.fromhex(terms.signature), **plain)


def _read_terms(x: Any) -> SwapTerms:
    return SwapTerms(
        swap=_read_id(x),
        federation=text(x.federation, "federation"),
        contract=text(x.contract, "contract"),
        maker=site_name(x.maker),
        partner=site_name(x.partner),
        own_cases=count(x.own_cases, "own_cases"),
        partner_cases=count(x.partner_cases, "partner_cases"),
        steps=count(x.steps, "steps"),
        round=count(x.round, "round"),
        behind=x.behind,
        one_way=x.one_way,
        position=count(x.position, "position"),
        stage=count(x.stage, "stage"),
        living=text(x.living, "living"),
        signature=signature(x.signature),
    )


def _offer_reply(x: m.SwapOfferReply) -> Any:
    terms = _write_terms(x.terms) if x.terms is not None else None
    return pb.SwapOfferResponse(verdict=write_verdict(x.verdict), reason=x.reason, terms=terms)


def _read_offer_reply(x: Any) -> m.SwapOfferReply:
    verdict, terms = read_verdict(x.verdict), _read_terms(x.terms) if x.HasField("terms") else None
    require((verdict == "accept") == (terms is not None), "terms come with an accept, and with nothing else")
    return m.SwapOfferReply(verdict, code(x.reason), terms)


def _read_snapshot_reply(x: Any) -> m.SwapSnapshotReply:
    require(x.verdict in _SNAPSHOT_OF, f"unknown verdict {x.verdict}")
    return m.SwapSnapshotReply(_SNAPSHOT_OF[x.verdict], code(x.reason))


def _read_standing(number: int) -> m.SwapStanding:
    require(number in _STANDING_OF, f"unknown standing {number}")
    return _STANDING_OF[number]


def _write_state(x: m.SwapState) -> Any:
    return pb.SwapStateResponse(standing=_STANDING[x.standing], reason=code_or_other(x.reason))


def _read_state(x: Any) -> m.SwapState:
    return m.SwapState(_read_standing(x.standing), code(x.reason))


_STATE = (_write_state, _read_state, pb.SwapStateResponse)
PAIRS: tuple[tuple[type, type, MessageKind], ...] = (
    (
        m.SwapOffer,
        m.SwapOfferReply,
        MessageKind(
            "SwapOffer",
            lambda x: pb.SwapOfferRequest(terms=_write_terms(x.terms)),
            lambda x: m.SwapOffer(_read_terms(sub(x, "terms"))),
            pb.SwapOfferRequest,
            _offer_reply,
            _read_offer_reply,
            pb.SwapOfferResponse,
        ),
    ),
    (
        m.SwapSnapshot,
        m.SwapSnapshotReply,
        MessageKind(
            "SwapSnapshot",
            lambda x: pb.SwapSnapshotRequest(swap=_write_id(x.swap), model=write_model(x.model)),
            lambda x: m.SwapSnapshot(_read_id(x), read_model(sub(x, "model"))),
            pb.SwapSnapshotRequest,
            lambda x: pb.SwapSnapshotResponse(verdict=_SNAPSHOT[x.verdict], reason=code_or_other(x.reason)),
            _read_snapshot_reply,
            pb.SwapSnapshotResponse,
        ),
    ),
    (
        m.SwapReady,
        m.SwapState,
        MessageKind(
            "SwapReady",
            lambda x: pb.SwapReadyRequest(swap=_write_id(x.swap)),
            lambda x: m.SwapReady(_read_id(x)),
            pb.SwapReadyRequest,
            *_STATE,
        ),
    ),
    (
        m.SwapTold,
        m.SwapState,
        MessageKind(
            "SwapTold",
            lambda x: pb.SwapToldRequest(
                swap=_write_id(x.swap), standing=_STANDING[x.standing], reason=code_or_other(x.reason)
            ),
            lambda x: m.SwapTold(_read_id(x), _read_standing(x.standing), code(x.reason)),
            pb.SwapToldRequest,
            *_STATE,
        ),
    ),
)
