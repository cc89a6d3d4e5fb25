"""Who takes part in the rounds: the listed sites, the quorum, and each attempt's coordinator.

Pure values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gossipseg.core.types import Proposal, Site, fingerprint

RUN_NUMBER = "0"


def run_of(federation: str, contract: str) -> str:
    """The identity of a run, carried by every message of a round. Sites of different runs refuse each
    other."""
    return fingerprint((("contract", contract), ("federation", federation), ("run", RUN_NUMBER)))


@dataclass(frozen=True, slots=True)
class QuorumConfig:
    """The listed sites, this one included, sorted, and the size of their quorum."""

    sites: tuple[Site, ...]
    quorum: int
    """Number of sites that must contribute."""
    key: str
    """Hash of the list, used in messages."""

    @classmethod
    def of(cls, sites: Iterable[Site], quorum: int | None) -> QuorumConfig:
        """Build the configuration. `quorum`: as set, or None for a majority."""
        listed = tuple(sorted(sites))
        majority = len(listed) // 2 + 1
        return cls(listed, quorum or majority, fingerprint(tuple((s, "") for s in listed)))

    @property
    def size(self) -> int:
        """Number of sites that must promise, and that must store. Any two such sets have a site in common."""
        return max(self.quorum, len(self.sites) // 2 + 1)

    def coordinator(self, round: int, attempt: int) -> Site:
        """The one site that may lead this attempt."""
        return self.sites[(round + attempt) % len(self.sites)]

    def fault(self, proposal: Proposal) -> str:
        """Why no honest coordinator proposes this model; "" if one may."""
        contributors = proposal.contributors
        if len(set(contributors)) != len(contributors) or len(contributors) < self.quorum:
            return "too_few_contributors"
        if not set(contributors) <= set(self.sites):
            return "unlisted_contributor"
        return ""
