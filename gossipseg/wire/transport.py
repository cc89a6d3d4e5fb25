"""What every wire must do: `memory` (a seeded network in one process) or gRPC over mTLS.

One contract suite (tests/wire/test_contract.py) runs against every transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gossipseg.core.messages import Reply, Request
from gossipseg.core.types import ModelRef, Site
from gossipseg.wire.reached import Reached


@dataclass(frozen=True, slots=True)
class PeerEndpoint:
    """A listed site: its pinned certificates (PEM; one, or two during a rotation) and its address."""

    site: Site
    address: str
    certificates: tuple[bytes, ...] = ()


class Handler(Protocol):
    """What the daemon does for its peers. `peer` is the site that the shown key is listed for."""

    async def on_request(self, peer: Site, body: Request) -> Reply:
        """Answer one request. Raise errors.PeerError to refuse the caller."""
        ...

    async def push_offset(self, peer: Site, model: ModelRef) -> int:
        """Bytes of the model already here, from which the sender resumes.

        Raises errors.PeerRefused when the model was not accepted from that peer (`not_offered`).
        """
        ...

    async def on_push(self, peer: Site, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        """Take the rest of an accepted model; returns once it is whole, checked and stored.

        Raises errors.PeerRefused with the reason when the model is invalid (hash_mismatch, too_large …). When
        `chunks` raises or ends early, the received part is kept for a later resume.
        """
        ...


@dataclass(slots=True)
class Traffic:
    """Bytes and models exchanged with one peer since this daemon started."""

    bytes_out: int = 0
    bytes_in: int = 0


class Transport(Protocol):
    """Request/reply and model streams to listed sites."""

    async def start(self, handler: Handler) -> None:
        """Listen. Raises errors.LocalError when the address is taken."""
        ...

    async def request(self, to: Site, body: Request, timeout_s: float) -> Reply:
        """Send one request and return its reply. Raises PeerUnreachable, PeerUntrusted or PeerRefused."""
        ...

    async def push(
        self,
        to: Site,
        model: ModelRef,
        path: Path,
        timeout_s: float,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Stream the file to the peer, resuming where an earlier try was interrupted.

        `progress` is called with the number of bytes of the file handed over. Returns once the peer has
        stored it whole. Raises PeerUnreachable, PeerUntrusted, PeerRefused; LocalError when the file cannot
        be read here.
        """
        ...

    @property
    def address(self) -> str:
        """host:port where this transport listens."""
        ...

    async def reach(self, site: Site) -> Reached:
        """Dial the site's listed address anew, and exchange full-size packets. Raises nothing."""
        ...

    async def ask_reach(self, site: Site) -> Reached:
        """Let the site dial this one, and return the result. Raises nothing."""
        ...

    def set_peers(self, peers: Mapping[Site, PeerEndpoint]) -> None:
        """Apply the listed sites. A site no longer listed is refused at its next call, on open channels too.

        Raises errors.ConfigError, changing nothing, for malformed addresses or certificates.
        """
        ...

    def hint_address(self, site: Site, address: str) -> None:
        """Add an address to try beside the listed one; dropped unless a handshake there succeeds.

        Unlisted sites and malformed texts are ignored: hints come from the network.
        """
        ...

    def traffic(self, site: Site) -> Traffic:
        """Bytes exchanged with a site so far."""
        ...

    def clock_ahead_s(self, site: Site, now_s: float) -> float | None:
        """How far the site's clock was ahead of `now_s` (ours, wall seconds); None: it sent none."""
        ...

    async def close(self) -> None:
        """Stop listening, end open streams."""
        ...
