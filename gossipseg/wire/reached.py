"""What came of dialling a site's listed address: the answer to "can you reach me?", and its bytes.

What belongs here: values and their mapping to protobuf. What must not: sockets (grpc_reach.py), remedies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError

from gossipseg.core.types import Site
from gossipseg.errors import PeerRefused
from gossipseg.wire import peer_pb2 as pb

ECHO_BYTES = 64 << 10
"""Some forty full-size packets."""
_MAX_TEXT = 400

Outcome = Literal[
    "ok",
    "no_address",
    "dns",
    "refused",
    "timeout",
    "no_route",
    "mute",
    "tls",
    "untrusted",
    "not_accepted",
    "stalled",
    "no_echo",
    "failed",
    "not_asked",
    "older",
]
_ON_THE_WIRE: Mapping[Outcome, Any] = {
    "ok": pb.REACH_OUTCOME_OK,
    "no_address": pb.REACH_OUTCOME_NO_ADDRESS,
    "dns": pb.REACH_OUTCOME_DNS,
    "refused": pb.REACH_OUTCOME_REFUSED,
    "timeout": pb.REACH_OUTCOME_TIMEOUT,
    "no_route": pb.REACH_OUTCOME_NO_ROUTE,
    "mute": pb.REACH_OUTCOME_MUTE,
    "tls": pb.REACH_OUTCOME_TLS,
    "untrusted": pb.REACH_OUTCOME_UNTRUSTED,
    "not_accepted": pb.REACH_OUTCOME_NOT_ACCEPTED,
    "stalled": pb.REACH_OUTCOME_STALLED,
    "no_echo": pb.REACH_OUTCOME_NO_ECHO,
    "failed": pb.REACH_OUTCOME_FAILED,
}
_READ = {number: outcome for outcome, number in _ON_THE_WIRE.items()}


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of dialling a listed address."""

    outcome: Outcome
    """`not_asked`: the site could not be asked, or asks for patience; `older`: it knows no such question."""
    address: str = ""
    """That was dialled."""
    detail: str = ""
    """In the words of the system that dialled."""
    works_at: str = ""
    """Another address, at which calls get through now."""

    @property
    def good(self) -> bool:
        """All that could be tried went well."""
        return self.outcome in ("ok", "no_echo")

    @property
    def known(self) -> bool:
        """It says something of the way."""
        return self.outcome not in ("not_asked", "older")


def encode_reached(reached: Reached) -> bytes:
    """The answer to Reach."""
    message = pb.ReachResponse(
        outcome=_ON_THE_WIRE.get(reached.outcome, pb.REACH_OUTCOME_FAILED),
        address=reached.address[:_MAX_TEXT],
        detail=reached.detail[:_MAX_TEXT],
        works_at=reached.works_at[:_MAX_TEXT],
    )
    data: bytes = message.SerializeToString()
    return data


def decode_reached(data: bytes, peer: Site) -> Reached:
    """What `peer` says. Its texts are shortened, and hold no control characters. Raises PeerRefused."""
    try:
        message = pb.ReachResponse.FromString(data)
    except DecodeError as e:
        raise PeerRefused(peer, "malformed", f"ReachResponse: {e}") from None
    texts = (_plain(t) for t in (message.address, message.detail, message.works_at))
    return Reached(_READ.get(message.outcome, "failed"), *texts)


def encode_echo(padding: bytes, reply_bytes: int) -> bytes:
    """An echo's request."""
    data: bytes = pb.EchoRequest(padding=padding, reply_bytes=reply_bytes).SerializeToString()
    return data


def answer_echo(data: bytes, peer: Site, padding: bytes) -> bytes:
    """The reply to an echo of `peer`, cut from `padding`. Raises PeerRefused for one beyond the bounds."""
    try:
        asked = pb.EchoRequest.FromString(data)
    except DecodeError as e:
        raise PeerRefused(peer, "malformed", f"EchoRequest: {e}") from None
    if len(asked.padding) > ECHO_BYTES or asked.reply_bytes > ECHO_BYTES:
        raise PeerRefused(peer, "too_large", f"an echo has at most {ECHO_BYTES} bytes")
    reply: bytes = pb.EchoResponse(padding=padding[: asked.reply_bytes]).SerializeToString()
    return reply


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT])
