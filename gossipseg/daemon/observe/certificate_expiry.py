"""Warns in time of certificates that end soon: this site's own and the listed ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from gossipseg import trust
from gossipseg.certificates import WARN_DAYS
from gossipseg.config import Config
from gossipseg.core.types import Site

DAY_S = 86_400.0
LOOK_EVERY_S = 3600.0


class Told(Protocol):
    """Writes an event (Runtime.note)."""

    def __call__(self, event: str, *, site: Site, days: float, reason: str) -> None: ...


def warnings(config: Config, own_days: float | None, now_s: float) -> Mapping[Site, tuple[float, str]]:
    """Site → days left and the warning, for those below WARN_DAYS.

    For this site the certificate in use counts (`own_days`): a second one may be listed already.
    """
    me, found = config.site.site, {}
    for site, end_s in trust.last_ends(config.federation.sites).items():
        days = own_days if site == me and own_days is not None else (end_s - now_s) / DAY_S
        if days < WARN_DAYS:
            found[site] = (days, _text(site, days, site == me))
    return found


def _text(site: Site, days: float, own: bool) -> str:
    whose = "this site's certificate" if own else f"{site}'s certificate"
    when = f"expires in {days:.0f} days" if days > 0 else f"expired {-days:.0f} days ago"
    remedy = "begin its rotation with `gossipctl rotate`" if own else f"ask {site} for its next one"
    return f"{whose} {when}: {remedy}"


async def watch(
    find: Callable[[], Mapping[Site, tuple[float, str]]], tell: Told, clock: Callable[[], float]
) -> None:
    """Write `certificate_expires` for each site that `find` names: at once, and again after a day."""
    told: dict[Site, float] = {}
    while True:
        now_s = clock()
        for site, (days, text) in find().items():
            if now_s - told.get(site, -DAY_S) >= DAY_S:
                told[site] = now_s
                tell("certificate_expires", site=site, days=round(days, 1), reason=text)
        await asyncio.sleep(LOOK_EVERY_S)
