"""What one site knows of another one. Values only; the rules that change them are in members.py.

Members are keyed by the site's listed name. The shell reads these and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossipseg.core.types import AliveRecord, LeftRecord, MemberState, PeerInfo, Phase, Site, SuspectRecord


@dataclass(slots=True)
class Suspicion:
    """A running suspicion: who accuses, in which incarnation, and when the accused counts as dead."""

    incarnation: int
    started: float
    deadline: float
    minimum_s: float
    needed: int
    """Independent confirmations that bring the timeout down to its minimum (0: it starts there)."""
    called: bool = False
    """It was pinged once more before it is given up."""
    accusers: dict[Site, SuspectRecord] = field(default_factory=dict)
    """In the order they were heard of; the first one's accusation is not a confirmation."""


@dataclass(slots=True)
class FailureRun:
    """Failures of one kind in a row, with the same site."""

    failed: int = 0
    since: float = 0.0
    """When the first of them was (the core's clock)."""
    reason: str = ""
    """Why the last one failed."""

    def fails(self, now: float, reason: str) -> None:
        """One more."""
        if not self.failed:
            self.since = now
        self.failed, self.reason = self.failed + 1, reason

    def ends(self) -> None:
        """It went well, or what failed is no more."""
        self.failed, self.reason = 0, ""


@dataclass(slots=True)
class Member:
    """A listed site as seen from here."""

    site: Site
    state: MemberState = MemberState.UNSEEN
    reason: str = ""
    """Why it is in this state: who suspects it, why it cannot be reached."""
    incarnation: int = 0
    nonce: int = 0
    address: str = ""
    """host:port it last announced; the listed one until then."""
    cases: int = 0
    """Training cases it announced; 0 while unknown."""
    info: PeerInfo | None = None
    """What it last said of itself to this site; None before the first direct contact."""
    last_heard: float | None = None
    """When it last spoke to this site directly (the core's clock)."""
    rtt_s: float | None = None
    """Round-trip time of the last answered ping."""
    refused: str = ""
    """Why no weights move between us: the first field of the contract that differs, with both values."""
    agreed: bool = False
    """A Hello was exchanged with its present life, and nothing but the network signature may be open."""
    since: float = 0.0
    """When it came into its present state."""
    alive: AliveRecord | None = None
    left: LeftRecord | None = None
    suspicion: Suspicion | None = None
    previous_nonce: int = 0
    hello_for: tuple[str, str] | None = None
    """(its fingerprint, ours) at the last Hello with its present life."""
    greeting: bool = False
    """A Hello to it is under way."""
    blocked: bool = False
    """`refused` comes from the wire (wrong key, not listed there), not from a comparison."""
    quarantined_until: float | None = None
    """Until when nothing is taken from it (the core's clock); None: it is in no quarantine."""
    offence: str = ""
    """The last one, while it is in quarantine."""
    called_at: float | None = None
    """When a call of its own last came in; None: none has."""
    calls: FailureRun = field(default_factory=FailureRun)
    """This site's calls to it that had no answer, in a row. A refusal is an answer."""
    deaf: FailureRun = field(default_factory=FailureRun)
    """Those of them that failed after a call of its own had come in: it is up, and cannot be called."""
    sends: FailureRun = field(default_factory=FailureRun)
    """Models to it that did not get through."""
    takes: FailureRun = field(default_factory=FailureRun)
    """Models from it that did not get through."""

    @property
    def live(self) -> bool:
        """Alive, or not yet given up."""
        return self.state is MemberState.ALIVE or self.state is MemberState.SUSPECT

    @property
    def quarantined(self) -> bool:
        """Nothing is taken from it now."""
        return self.quarantined_until is not None

    @property
    def accusation(self) -> SuspectRecord | None:
        """The first accusation of the suspicion that runs, or that it died of."""
        return next(iter(self.suspicion.accusers.values())) if self.suspicion else None

    @property
    def exchanges_now(self) -> bool:
        """It takes part in the exchange, as far as is known: alive, its worker up, its contract not refused.

        A site never met directly gets the benefit of the doubt.
        """
        return (
            self.state is MemberState.ALIVE
            and not self.refused
            and not self.quarantined
            and self.cases > 0
            and (self.info is None or self.info.phase is Phase.TRAINING)
        )
