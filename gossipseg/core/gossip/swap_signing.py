"""This site's signed terms for a swap, and the checks on the partner's."""

from __future__ import annotations

from dataclasses import replace

from gossipseg.core.context import Context
from gossipseg.core.gossip.swap_terms import capped_cases
from gossipseg.core.membership.members import Membership
from gossipseg.core.types import ExchangeId, Site, SwapTerms, terms_payload


class SwapSigner:
    """Makes and checks terms."""

    def __init__(self, ctx: Context, membership: Membership) -> None:
        self._ctx, self._membership = ctx, membership

    def sign(
        self,
        swap: ExchangeId,
        partner: Site,
        *,
        behind: bool,
        one_way: bool = False,
        mark: tuple[int, int, str] = (0, 0, ""),
    ) -> SwapTerms:
        """This site's side of a swap with `partner`. `mark`: as SwapTurns.mark."""
        ctx = self._ctx
        terms = SwapTerms(
            swap,
            ctx.federation,
            ctx.info.contract,
            ctx.site,
            partner,
            own_cases=ctx.info.cases,
            partner_cases=self._cases_of(partner),
            steps=ctx.info.steps,
            round=ctx.info.round,
            behind=behind,
            one_way=one_way,
            position=mark[0],
            stage=mark[1],
            living=mark[2],
        )
        return replace(terms, signature=ctx.sign(terms_payload(terms)).hex())

    def _cases_of(self, partner: Site) -> int:
        members = self._membership.members
        claimed = members[partner].cases if partner in members else 0
        own = self._ctx.info.cases or None
        return capped_cases(claimed, self._membership.census.cases.median(without=partner, beside=own))

    def fault(self, terms: SwapTerms | None, swap: ExchangeId, maker: Site) -> str:
        """Why the partner's terms are refused, or ""."""
        if terms is None:
            return "terms_mismatch"
        if terms.fault:
            return terms.fault
        if (terms.swap, terms.maker, terms.partner) != (swap, maker, self._ctx.site):
            return "terms_mismatch"
        if (terms.federation, terms.contract) != (self._ctx.federation, self._ctx.info.contract):
            return "terms_mismatch"
        return "" if terms.own_cases > 0 else "no_cases"
