"""What the parts of a node share within one step: the time, the effects so far, and this site's PeerInfo."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gossipseg.core import messages
from gossipseg.core.effects import Effect, Note, Request, Respond
from gossipseg.core.events import RequestFailed
from gossipseg.core.offences import is_offence
from gossipseg.core.types import ModelRef, PeerInfo, Phase, Sign, Site, fingerprint

CallOutcome = messages.Reply | RequestFailed
Contract = tuple[tuple[str, str], ...]
SELDOM_S = 60.0
"""Minimum seconds between two notes of the same lasting problem."""


@dataclass(slots=True)
class Call:
    """A request under way, and who waits for its outcome."""

    to: Site
    then: Callable[[Call, CallOutcome], None]
    about: Any
    """What the caller wants back with the outcome."""
    sent_at: float
    rtt_s: float | None = None


class Context:
    """Time, effects, pending calls and what this site says of itself."""

    def __init__(
        self,
        site: Site,
        *,
        federation: str,
        contract: Contract,
        protocol: tuple[int, int],
        rng: random.Random,
        sign: Sign,
    ) -> None:
        self.site, self.federation, self.contract, self.protocol = site, federation, contract, protocol
        self.rng, self.sign = rng, sign
        self.now = 0.0
        self.effects: list[Effect] = []
        self.calls: dict[int, Call] = {}
        self.info = PeerInfo(0, 0, 0, Phase.STARTING, "")
        self.own_steps = 0
        """Steps that this site took itself. A merged model may have brought `info.steps` to any number."""
        self.persist: Callable[[], None] = lambda: None
        """Append a Persist of the whole snapshot; set by assembly.py."""
        self.offences: list[tuple[Site, str]] = []
        """Offences of this step so far; they are counted at its end."""
        self._last_id = 0
        self._noted_at: dict[tuple[str, Site], float] = {}

    # -------------------------------------------------------------- effects

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def request(
        self,
        to: Site,
        body: messages.Request,
        timeout_s: float,
        then: Callable[[Call, CallOutcome], None],
        about: Any = None,
    ) -> None:
        """Ask `to`; a later step calls `then` with the reply or the failure."""
        self._last_id += 1
        self.calls[self._last_id] = Call(to, then, about, self.now)
        self.effects.append(Request(self._last_id, to, body, timeout_s))

    def respond(self, token: int, body: messages.Reply) -> None:
        self.effects.append(Respond(token, body))

    def note(self, event: str, site: Site | None = None, reason: str = "", **detail: Any) -> None:
        self.effects.append(Note(event, site, reason, detail))

    def note_seldom(self, event: str, site: Site, reason: str) -> None:
        """Note a lasting problem, at most once in SELDOM_S per event and listed site."""
        if self.now - self._noted_at.get((event, site), -math.inf) >= SELDOM_S:
            self._noted_at[event, site] = self.now
            self.note(event, site, reason)

    def offence(self, site: Site, reason: str) -> None:
        """Record that what `site` sent was refused for cause."""
        self.offences.append((site, reason))

    def refused(self, site: Site, reason: str, model: ModelRef | None) -> None:
        """Record that what `site` sent was refused; it is an offence if the reason is one."""
        if is_offence(reason, site, model):
            self.offence(site, reason)

    # -------------------------------------------------------------- this site's PeerInfo

    def say(self, **changes: Any) -> None:
        """Change what this site says of itself."""
        self.info = replace(self.info, **changes)

    def contract_known(self, contract: Contract) -> None:
        """Take the contract with the network signature that the worker has filled in."""
        self.contract = contract
        self.say(contract=fingerprint(contract))

    def hello(self) -> messages.Hello:
        return messages.Hello(*self.protocol, self.federation, self.contract, self.info)

    def hello_reply(self) -> messages.HelloReply:
        return messages.HelloReply(*self.protocol, self.federation, self.contract, self.info)
