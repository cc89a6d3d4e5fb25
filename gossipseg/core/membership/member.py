"""What one site knows of another one. Values only; members.py holds the rules that change them.

Members are keyed by the site's listed name. The shell reads members and changes none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossipseg.core.types import AliveRecord, LeftRecord, MemberState, PeerInfo, Phase, Site, SuspectRecord


@dataclass(slots=True)
class Suspicion:
    """A running suspicion: the accusers, the incarnation, and when the accused counts as dead."""

    incarnation: int
    started: float
    deadline: float
    minimum_s: float
    needed: int
    """Independent confirmations that bring the timeout down to its minimum (0: the timeout starts there)."""
    called: bool = False
    """Whether the suspect got its last ping before it is declared dead."""
    accusers: dict[Site, SuspectRecord] = field(default_factory=dict)
    """Accusers in the order heard. The first accusation is not a confirmation."""


@dataclass(slots=True)
class FailureRun:
    """Consecutive failures of one kind with the same site."""

    failed: int = 0
    since: float = 0.0
    """Time of the first failure (the core's clock)."""
    reason: str = ""
    """Reason of the last failure."""

    def fails(self, now: float, reason: str) -> None:
        """Count one more failure."""
        if not self.failed:
            self.since = now
        self.failed, self.reason = self.failed + 1, reason

    def ends(self) -> None:
        """End the run: a call succeeded, or failures of that kind no longer matter."""
        self.failed, self.reason = 0, ""


@dataclass(slots=True)
class Member:
    """A listed site as seen from here."""

    site: Site
    state: MemberState = MemberState.UNSEEN
    reason: str = ""
    """Why the member is in this state: who suspects it, why it cannot be reached."""
    incarnation: int = 0
    nonce: int = 0
    address: str = ""
    """host:port that the site last announced; the listed one until then."""
    cases: int = 0
    """Training cases that the site announced; 0 while unknown."""
    info: PeerInfo | None = None
    """PeerInfo that the site last sent to this one; None before the first direct contact."""
    last_heard: float | None = None
    """When the site last sent a message to this one directly (the core's clock)."""
    rtt_s: float | None = None
    """Round-trip time of the last answered ping."""
    refused: str = ""
    """Why no weights move between the two sites: the first contract field that differs, with both values."""
    agreed: bool = False
    """Whether a Hello was exchanged with its present incarnation; only the network signature may be open."""
    since: float = 0.0
    """When the member entered its present state."""
    alive: AliveRecord | None = None
    left: LeftRecord | None = None
    suspicion: Suspicion | None = None
    previous_nonce: int = 0
    hello_for: tuple[str, str] | None = None
    """(its fingerprint, ours) at the last Hello with its present incarnation."""
    greeting: bool = False
    """Whether a Hello to the site is under way."""
    blocked: bool = False
    """Whether `refused` comes from the wire (wrong key, not listed there), not from a comparison."""
    quarantined_until: float | None = None
    """Until when nothing is accepted from the site (the core's clock); None: no quarantine."""
    offence: str = ""
    """Reason of the last offence, while the site is in quarantine."""
    called_at: float | None = None
    """When a call from the site last came in; None: no call has."""
    calls: FailureRun = field(default_factory=FailureRun)
    """This site's consecutive calls that the other site did not answer. A refusal is an answer."""
    deaf: FailureRun = field(default_factory=FailureRun)
    """Those of `calls` that failed after a call from the site had come in. The site is up, and cannot be
    called."""
    sends: FailureRun = field(default_factory=FailureRun)
    """Models that could not be delivered to the site."""
    takes: FailureRun = field(default_factory=FailureRun)
    """Models from the site that could not be received."""

    @property
    def live(self) -> bool:
        """Whether the member is alive or suspect."""
        return self.state is MemberState.ALIVE or self.state is MemberState.SUSPECT

    @property
    def quarantined(self) -> bool:
        """Whether nothing is accepted from the member now."""
        return self.quarantined_until is not None

    @property
    def accusation(self) -> SuspectRecord | None:
        """The first accusation of the running suspicion, or the one that the member died of."""
        return next(iter(self.suspicion.accusers.values())) if self.suspicion else None

    @property
    def exchanges_now(self) -> bool:
        """Whether the member takes part in the exchange, as far as is known.

        That is: it is alive, its worker is up, its contract is not refused. A site never met directly is
        assumed compatible.
        """
        return (
            self.state is MemberState.ALIVE
            and not self.refused
            and not self.quarantined
            and self.cases > 0
            and (self.info is None or self.info.phase is Phase.TRAINING)
        )
