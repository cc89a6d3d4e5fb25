"""The arithmetic of a swap: which part each site takes, and with which weight.

Its rules: docs/design/swap.md. Pure functions of the two sites' signed terms, so that both reach the same
plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gossipseg.core.effects import SwapPart
from gossipseg.core.types import SwapTerms

CASES_CAP = 4.0
"""A partner's training cases count up to this multiple of the median of the other listed sites'."""
ONE_WAY_LIMIT = 0.5
"""Largest weight of a model that came in one way."""


def capped_cases(claimed: int, typical: float | None) -> int:
    """A partner's training cases as this site counts them.

    `typical`: the median of the known counts of all listed sites but the partner, this site's own among them;
    None where none is known.
    """
    return claimed if typical is None else min(claimed, max(1, math.floor(CASES_CAP * typical)))


def is_behind(steps: int, typical: float | None) -> bool:
    """Whether a site has under half of the steps that the others have in the median (`typical`).

    One site alone that claims many steps makes nobody take its model over.
    """
    return typical is not None and 2 * steps < typical


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """What the swap does at its two sites."""

    asker: SwapPart
    asked: SwapPart
    asker_weight: float
    """Weight of the asked site's model at the asker: m_j/(m_i+m_j)."""
    asked_weight: float
    """Weight of the asker's model at the asked site."""

    def of(self, asker: bool) -> tuple[SwapPart, SwapPart, float]:
        """Own part, the partner's part, own weight."""
        if asker:
            return self.asker, self.asked, self.asker_weight
        return self.asked, self.asker, self.asked_weight


def plan(asker: SwapTerms, asked: SwapTerms) -> SwapPlan | None:
    """The plan that follows from both sites' terms; None where no model could move.

    Of the two views of a site's cases the smaller holds.
    """
    m_asker = min(asker.own_cases, asked.partner_cases)
    m_asked = min(asked.own_cases, asker.partner_cases)
    if m_asker <= 0 or m_asked <= 0:
        return None
    to_asker, to_asked = m_asked / (m_asker + m_asked), m_asker / (m_asker + m_asked)
    one_way = asked.one_way
    if _young(asker, asked):
        return None if one_way else SwapPlan("copy", "keep", 1.0, 0.0)
    if _young(asked, asker):
        return SwapPlan("keep", "copy", 0.0, 1.0)
    if one_way:
        return SwapPlan("keep", "mix", 0.0, min(ONE_WAY_LIMIT, to_asked))
    return SwapPlan("mix", "mix", to_asker, to_asked)


def _young(one: SwapTerms, other: SwapTerms) -> bool:
    """Whether a site takes the other one's model over as a copy."""
    return one.behind and 2 * one.steps < other.steps
