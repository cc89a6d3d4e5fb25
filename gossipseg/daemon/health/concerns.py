"""Why this site is not well, and what to do: the core's concerns, reachability of peers, deleted places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gossipseg.core.node import Concern
from gossipseg.core.types import MemberState
from gossipseg.daemon.health.reachability import Found
from gossipseg.wire.documents import ConcernRow, ReachRow
from gossipseg.wire.listen_address import ListenFault
from gossipseg.wire.reached import (
    MTU_REMEDY,
    Reached,
    inward_text,
    outcome_text,
    outward_remedy,
    outward_text,
)

if TYPE_CHECKING:
    from gossipseg.daemon.runtime import Runtime

_CHECK = "`gossipctl check --reach` tries each step"
REMEDIES: Mapping[str, str] = {
    "never_seen": "Has its daemon been started? Else compare its address in peers.yaml with its `listen`, "
    f"and open its port to this site; {_CHECK}.",
    "calls_in_only": "Open its port to this site in the firewalls on the way, or correct its address in "
    f"peers.yaml; {_CHECK}.",
    "sends_fail": f"`gossipctl exchanges` shows them; {_CHECK} with full-size packets.",
    "takes_fail": f"`gossipctl exchanges` shows them; {_CHECK} with full-size packets.",
    "nothing_sent": f"`gossipctl peers` says why no site accepts them; {_CHECK}.",
    "nothing_received": f"`gossipctl peers` shows the state of the other sites; {_CHECK}.",
    "no_common_model": f"`gossipctl rounds` says who is waited for; {_CHECK}.",
    "round_cannot_close": "Start the missing sites, or repair the connection to them; remove a site that is "
    "gone for good from peers.yaml at all sites.",
    "lists_differ": "Make peers.yaml the same at both sites, and `gossipctl reload` there and here.",
    "cannot_be_reached": "Open this site's port to others, and compare `listen` with the listed address; "
    f"{_CHECK}.",
    "path_mtu": MTU_REMEDY,
    "wrong_listen": "Correct `listen` in site.yaml and restart the daemon.",
    "state_dir_gone": "Put it back from a backup if there is one, and restart the daemon; then find "
    "out what deletes files there (do not use a temporary folder).",
    "control_socket_gone": "Find out what deletes files there; control_socket in site.yaml sets another "
    "place.",
}
"""Code → what to do. The keys are all codes."""
_UNREACHED = ("dns", "refused", "timeout", "no_route", "mute", "tls", "untrusted")


def current_concerns(r: Runtime, now: float) -> tuple[ConcernRow, ...]:
    """All present concerns (monotonic time)."""
    found = [_row(c.code, c.site, _detailed(r, c)) for c in r.node.concerns(now)]
    found += _of_looks(r)
    found += [_row(code, "", text) for code, text in r.places.lost.items()]
    return tuple(found)


def sentence(row: ConcernRow) -> str:
    """A concern as one of the reasons in the status."""
    whom = f"{row.site}: " if row.site else ""
    return f"{whom}{row.text}. {row.remedy}".rstrip(".")


def _row(code: str, site: str, text: str, remedy: str = "") -> ConcernRow:
    return ConcernRow(code, site, text, remedy or REMEDIES[code])


def _detailed(r: Runtime, concern: Concern) -> str:
    """The text with the result of the site's reachability check, or with the last failure."""
    if concern.code not in ("never_seen", "calls_in_only"):
        return concern.text
    found = r.reaching.found.get(concern.site)
    telling = found is not None and found.out.known and not found.out.good
    why = outward_text(found.out) if found is not None and telling else concern.why
    return f"{concern.text}: {why}" if why else concern.text


def _of_looks(r: Runtime) -> Iterator[ConcernRow]:
    """Concerns from the reachability checks of the other sites."""
    fault, settled = r.reaching.listen_fault, False
    for site, found in sorted(r.reaching.found.items()):
        member = r.node.members.get(site)
        if member is None or member.state is MemberState.LEFT:
            continue
        yield from _stalled(site, found)
        if not member.live:
            continue
        settled = settled or found.back.good or bool(found.back.works_at)
        if found.back.outcome in _UNREACHED and not found.back.works_at:
            settled = True
            remedy = fault.remedy if fault is not None else REMEDIES["cannot_be_reached"]
            said = f"; {fault.text}" if fault is not None else ""
            yield _row("cannot_be_reached", site, f"{inward_text(found.back)}{said}", remedy)
    if fault is not None and fault.certain and not settled:
        yield _row("wrong_listen", "", fault.text, fault.remedy)


def _stalled(site: str, found: Found) -> Iterator[ConcernRow]:
    if found.out.outcome == "stalled":
        text = f"full-size packets do not get through to {found.out.address}: {found.out.detail}"
        yield _row("path_mtu", site, text)
    elif found.back.outcome == "stalled":
        text = f"full-size packets do not get through where it dials this site: {found.back.detail}"
        yield _row("path_mtu", site, text)


def reach_rows(site: str, found: Found, fault: ListenFault | None) -> Iterator[ReachRow]:
    """Both directions of a reachability check, for `gossipctl check --reach`."""
    yield _reach_row(site, "out", found.out, outward_text(found.out), outward_remedy(site, found.out))
    back, remedy = found.back, ""
    if back.works_at and back.known:
        text = f"{inward_text(back)}; but at {back.works_at} its calls get through"
        remedy = f"List {back.works_at} as this site's address in peers.yaml, at all sites."
    elif back.good:
        text = f"it reaches this site at {back.address}: {outcome_text(back)}"
    elif not back.known:
        text = f"it {back.detail}" if back.outcome == "older" else f"{outcome_text(back)}"
    else:
        text = inward_text(back)
        if fault is not None and back.outcome in _UNREACHED:
            text, remedy = f"{text}; {fault.text}", fault.remedy
        else:
            remedy = REMEDIES["path_mtu" if back.outcome == "stalled" else "cannot_be_reached"]
    yield _reach_row(site, "in", back, text, remedy)


def _reach_row(site: str, direction: str, reached: Reached, text: str, remedy: str) -> ReachRow:
    return ReachRow(
        site, direction, reached.outcome, reached.good, reached.known, reached.address, text, remedy
    )
