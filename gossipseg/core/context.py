"""What the parts of a node share within one step: the time, the effects so far, and who we are."""

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
"""So long a lasting trouble is not noted again."""


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
    """Time, effects, pending calls and this site's own words."""

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
        """Steps that this site took itself. What it merged may have brought `info.steps` to any number."""
        self.persist: Callable[[], None] = lambda: None
        """Set by assembly.py: append a Persist of the whole snapshot."""
        self.offences: list[tuple[Site, str]] = []
        """Of this step so far: they count at its end."""
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
        """Ask `to`; `then` is called with the reply or the failure, in a later step."""
        self._last_id += 1
        self.calls[self._last_id] = Call(to, then, about, self.now)
        self.effects.append(Request(self._last_id, to, body, timeout_s))

    def respond(self, token: int, body: messages.Reply) -> None:
        self.effects.append(Respond(token, body))

    def note(self, event: str, site: Site | None = None, reason: str = "", **detail: Any) -> None:
        self.effects.append(Note(event, site, reason, detail))

    def note_seldom(self, event: str, site: Site, reason: str) -> None:
        """The same, at most once in SELDOM_S of an event and a listed site: for what goes on and on."""
        if self.now - self._noted_at.get((event, site), -math.inf) >= SELDOM_S:
            self._noted_at[event, site] = self.now
            self.note(event, site, reason)

    def offence(self, site: Site, reason: str) -> None:
        """What `site` sent was refused for cause."""
        self.offences.append((site, reason))

    def refused(self, site: Site, reason: str, model: ModelRef | None) -> None:
        """What `site` sent was refused: an offence if the reason is one."""
        if is_offence(reason, site, model):
            self.offence(site, reason)

    # -------------------------------------------------------------- this site's words

    def say(self, **changes: Any) -> None:
        """Change what this site tells of itself."""
        self.info = replace(self.info, **changes)

    def contract_known(self, contract: Contract) -> None:
        """The worker has filled in the network signature."""
        self.contract = contract
        self.say(contract=fingerprint(contract))

    def hello(self) -> messages.Hello:
        return messages.Hello(*self.protocol, self.federation, self.contract, self.info)

    def hello_reply(self) -> messages.HelloReply:
        return messages.HelloReply(*self.protocol, self.federation, self.contract, self.info)
