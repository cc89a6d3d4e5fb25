"""The result of dialling a site's listed address: the answer to "can you reach me?", and its bytes."""

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
MTU_REMEDY = (
    "Lower the MTU of the interface (`ip link set dev IFACE mtu 1280` shows whether that is it), "
    "clamp the MSS at the router, and let ICMP `fragmentation needed` / `packet too big` through."
)

ReachOutcome = Literal[
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
_ON_THE_WIRE: Mapping[ReachOutcome, Any] = {
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
    """The result of dialling a listed address."""

    outcome: ReachOutcome
    """`not_asked`: the site could not be asked, or asks for patience; `older`: its version does not know the
    question."""
    address: str = ""
    """The address that was dialled."""
    detail: str = ""
    """In the words of the system that dialled."""
    works_at: str = ""
    """Another address, at which calls succeed now."""

    @property
    def good(self) -> bool:
        """Whether everything that could be tried succeeded."""
        return self.outcome in ("ok", "no_echo")

    @property
    def known(self) -> bool:
        """Whether the result says anything about the listed address."""
        return self.outcome not in ("not_asked", "older", "no_address")


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
    """The answer of `peer`. Its texts are shortened, and control characters are removed. Raises
    PeerRefused."""
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


# ---------------------------------------------------------------- for people

_OUTCOMES: Mapping[str, str] = {
    "ok": "reached, full-size packets too",
    "no_echo": "reached",
    "no_address": "no listed address is dialled (discovery.static: false)",
    "dns": "the name has no address",
    "refused": "the connection was refused: nothing listens there, or a firewall refuses it",
    "timeout": "no answer to the connection: a firewall, a wrong address, or a machine that is off",
    "no_route": "there is no route to it",
    "mute": "connected, then no answer: it hangs, or full-size packets are lost on the way",
    "tls": "the answer is not from a gossipseg site",
    "untrusted": "another certificate is shown: a device in between opens TLS, or it is another machine",
    "not_accepted": "the dialling site's certificate was not accepted",
    "stalled": "small messages get through, full-size packets do not: a hole in the path's MTU",
    "failed": "it failed",
    "not_asked": "could not be asked",
    "older": "does not know the question (older version)",
}


def outcome_text(reached: Reached) -> str:
    """An outcome in words, with the system's own."""
    text = _OUTCOMES[reached.outcome]
    return f"{text} ({reached.detail})" if reached.detail else text


def outward_text(reached: Reached) -> str:
    """The result of dialling a site, in words."""
    return f"{reached.address or 'its address'}: {outcome_text(reached)}"


def inward_text(reached: Reached) -> str:
    """The result of a site's dialling this one, in words."""
    return f"it cannot reach this site at {reached.address or 'the listed address'}: {outcome_text(reached)}"


def outward_remedy(site: str, reached: Reached) -> str:
    """What the operator may do where dialling `site` failed."""
    if reached.good or not reached.known:
        return ""
    if reached.outcome == "stalled":
        return MTU_REMEDY
    if reached.outcome == "untrusted":
        return f"Ask {site} for its ID. If it is the listed one, a proxy between must not open its TLS."
    if reached.outcome == "dns":
        return "Correct the name in peers.yaml, or ask your DNS; an IP address serves."
    return f"Is {site}'s daemon running, its `listen` right, its port open to this site?"
