"""`gossipctl check --reach`: full-size packets both ways between this site and each other one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from gossipseg import trust
from gossipseg.config import Config
from gossipseg.ctl.doctor.findings import Finding
from gossipseg.ctl.doctor.peers import calling
from gossipseg.errors import GossipsegError
from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import ReachRow, StatusDoc
from gossipseg.wire.reached import Reached, outward_remedy, outward_text

_ARROW = {"out": "to", "in": "from"}


def check_reach(
    config: Config, identity: trust.Identity | None, status: StatusDoc | None
) -> Iterator[Finding]:
    """Check both directions through the daemon; without one only outgoing packets can be tried."""
    if not config.others or (identity is None and not config.site.insecure):
        yield Finding("reach", "skipped", "no other site is listed, or this site has no identity to show")
    elif status is not None:
        yield from _by_daemon(config)
    else:
        yield from _by_hand(config, identity)
        yield Finding(
            "reach",
            "skipped",
            "only a running daemon can be called back: whether others reach this site was not tried",
            "Start the daemon and ask again.",
        )


def _by_daemon(config: Config) -> Iterator[Finding]:
    try:
        with ControlClient(config.control_socket) as client:
            rows = client.reach().rows
    except GossipsegError as e:
        yield Finding("reach", "failed", str(e))
        return
    for row in rows:
        yield _finding(row)


def _finding(row: ReachRow) -> Finding:
    name = f"reach {_ARROW.get(row.direction, row.direction)} {row.site}"
    if row.good:
        return Finding(name, "ok", row.text, row.remedy)
    if not row.known:
        return Finding(
            name, "skipped" if row.outcome in ("older", "no_address") else "warning", row.text, row.remedy
        )
    return Finding(name, "failed", row.text, row.remedy)


def _by_hand(config: Config, identity: trust.Identity | None) -> Iterator[Finding]:
    found = asyncio.run(_dial_all(config, identity)) if config.site.discovery.static else {}
    for site, reached in found.items():
        text, remedy = outward_text(reached), outward_remedy(site, reached)
        yield Finding(f"reach to {site}", "ok" if reached.good else "failed", text, remedy)


async def _dial_all(config: Config, identity: trust.Identity | None) -> dict[str, Reached]:
    transport = calling(config, identity, config.others)
    try:
        found = await asyncio.gather(*(transport.reach(s.name) for s in config.others))
    finally:
        await transport.close()
    return {site.name: reached for site, reached in zip(config.others, found, strict=True)}
