"""The checks of `gossipctl check` on other sites: reachable, listed key, same contract?

While this site's own daemon runs, it is asked for its view: no second Hello is sent in its name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from gossipseg import config as configuration
from gossipseg import trust
from gossipseg.certificates import described
from gossipseg.config import Config, ListedSite
from gossipseg.core.membership.handshake import refusal
from gossipseg.core.messages import Hello, HelloReply
from gossipseg.core.types import PeerInfo, Phase
from gossipseg.ctl.doctor.findings import Finding
from gossipseg.errors import ConfigError, GossipsegError, LocalError, PeerRefused
from gossipseg.wire.addresses import split_address
from gossipseg.wire.clocks import CLOCK_TOLERANCE_S, clock_text
from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import PeerRow, StatusDoc
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.params import PROTOCOL_MAX, PROTOCOL_MIN
from gossipseg.wire.probe import Seen, seen_certificate
from gossipseg.wire.transport import PeerEndpoint

AT_ONCE = 16


def check_peers(
    config: Config, identity: trust.Identity | None, status: StatusDoc | None, timeout_s: float
) -> Iterator[Finding]:
    """One or more findings for each other listed site."""
    others = config.others
    if not others:
        yield Finding("peers", "warning", "no other site is listed", "Add them with `gossipctl peers add`.")
        return
    if identity is None and not config.site.insecure:
        yield Finding("peers", "skipped", "this site has no identity to show them")
        return
    if not config.site.discovery.static:
        yield from _unlisted_addresses(config, status)
        return
    if config.site.insecure:
        reached = others
    else:
        reached = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            looks = pool.map(lambda s: seen_certificate(s.address, identity, timeout_s), others)
            for site, seen in zip(others, looks, strict=True):
                finding = judge(site, seen)
                if finding is None:
                    reached.append(site)
                else:
                    yield finding
    if status is not None:
        yield from _from_daemon(config, reached)
    else:
        yield from asyncio.run(_greet_all(config, identity, reached, timeout_s))


def _unlisted_addresses(config: Config, status: StatusDoc | None) -> Iterator[Finding]:
    """discovery.static is false: neither the daemon nor this command dials the listed addresses."""
    if status is not None:
        yield from _from_daemon(config, config.others)
        return
    yield Finding(
        "peers",
        "skipped",
        "discovery.static is false: addresses come by mDNS, and only a running daemon hears it",
        "Start the daemon and ask again.",
    )


def judge(site: ListedSite, seen: Seen) -> Finding | None:
    """The fault that a probe of the listed address shows; None where a Hello may follow."""
    name = f"peer {site.name}"
    if not seen.reached:
        return Finding(name, "failed", *_out_of_reach(site, seen))
    listed = [trust.site_id(pem.encode()) for pem in trust.certificates_of(site)]
    if seen.id not in listed:
        return Finding(
            name,
            "failed",
            f"{site.address} shows the ID {seen.id or 'of a strange key'}; listed is {' or '.join(listed)}. "
            f"The certificate's {described(seen.certificate_pem or b'')}",
            f"Has another site this address, or {site.name} a new key? Ask its administrator for the ID. If "
            "it is the listed one, a device in between (a proxy, a firewall) opens TLS, and must not.",
        )
    if seen.accepted is False:
        return Finding(
            name,
            "failed",
            f"{site.address} does not accept this site's certificate: {seen.detail}",
            f"Ask {site.name} to list this site's certificate in its peers.yaml and to reload it.",
        )
    return None


def _out_of_reach(site: ListedSite, seen: Seen) -> tuple[str, str]:
    """(the obstacle, the remedy)."""
    host, port = split_address(site.address)
    if seen.stage == "dns":
        return (
            f"DNS: {host} has no address ({seen.detail})",
            f"Correct the name in peers.yaml, or ask your DNS (`getent hosts {host}`); an IP address serves.",
        )
    at = f"{host} ({seen.ip})" if seen.ip and seen.ip != host else host
    if seen.stage == "tls":
        return (
            f"TLS: something answers on port {port} of {at}, but not a gossipseg site ({seen.detail})",
            "Does another service, or a proxy between, have this port? Does it run with `insecure: true`?",
        )
    if "refused" in seen.detail.lower():
        return (
            f"port: {at} refused the connection to port {port} ({seen.detail})",
            "Is its daemon running, and the port right? A firewall may refuse too.",
        )
    return (
        f"port: no answer from port {port} of {at} ({seen.detail})",
        "Is the machine up, the address right, the port open in the firewalls between (both directions)?",
    )


# ---------------------------------------------------------------- the contract


def _from_daemon(config: Config, sites: list[ListedSite]) -> Iterator[Finding]:
    with ControlClient(config.control_socket) as client:
        rows = {row.site: row for row in client.peers().peers}
    for site in sites:
        row, name = rows.get(site.name), f"peer {site.name}"
        if row is None:
            yield Finding(name, "warning", "the daemon does not know it yet", "gossipctl reload")
        elif row.refused:
            yield Finding(name, "failed", row.refused, "Make peers.yaml the same at both sites.")
        else:
            yield _seen_as(config, site, row)


def _seen_as(config: Config, site: ListedSite, row: PeerRow) -> Finding:
    """The daemon's view of a site; only a site that it sees alive is well."""
    name, listed = f"peer {site.name}", config.site.discovery.static
    there = f"{site.address}: reached, identity right" if listed else f"{row.address or 'no address known'}"
    text = f"{there}; the daemon sees it {row.state}" + (f": {row.reason}" if row.reason else "")
    if row.state == "alive":
        return Finding(name, "ok", text)
    remedy = "`gossipctl check --reach` asks it to dial this site; `gossipctl status` says what is amiss."
    return Finding(name, "warning", text, remedy)


def calling(config: Config, identity: trust.Identity | None, sites: list[ListedSite]) -> GrpcTransport:
    """A transport that calls these sites in this one's name, and does not listen. To be closed."""
    endpoints = {
        s.name: PeerEndpoint(s.name, s.address, tuple(pem.encode() for pem in trust.certificates_of(s)))
        for s in sites
    }
    return GrpcTransport(
        config.site.site,
        listen=config.site.listen,
        identity=identity,
        peers=endpoints,
        insecure=config.site.insecure,
    )


async def _greet_all(
    config: Config, identity: trust.Identity | None, sites: list[ListedSite], timeout_s: float
) -> list[Finding]:
    transport = calling(config, identity, sites)
    try:
        return await asyncio.gather(*(_greet(config, transport, s, timeout_s) for s in sites))
    finally:
        await transport.close()


async def _greet(config: Config, transport: GrpcTransport, site: ListedSite, timeout_s: float) -> Finding:
    name, ours = f"peer {site.name}", hello(config)
    try:
        reply = await transport.request(site.name, ours, timeout_s)
    except PeerRefused as e:
        return Finding(name, "failed", str(e), f"Compare peers.yaml with {site.name}'s.")
    except (ConfigError, LocalError) as e:
        return Finding(name, "failed", str(e))
    except GossipsegError as e:
        return Finding(name, "failed", str(e), f"Is {site.name}'s daemon well? `gossipctl status` there.")
    assert isinstance(reply, HelloReply)
    if difference := refusal(ours, reply):
        return Finding(name, "failed", f"contract: {difference}", "Make peers.yaml the same at both sites.")
    ahead_s = transport.clock_ahead_s(site.name, time.time())
    if ahead_s is not None and abs(ahead_s) > CLOCK_TOLERANCE_S:
        return Finding(
            name,
            "warning",
            f"clock: {clock_text(site.name, ahead_s)}; identity and contract are right",
            f"One of the two is wrong: `timedatectl` here and at {site.name}; turn on NTP.",
        )
    return Finding(
        name,
        "ok",
        f"{site.address}: identity and contract right; {reply.info.phase.value}, round {reply.info.round}",
    )


def hello(config: Config) -> Hello:
    """The Hello of this site before its worker has ever run."""
    return Hello(
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        federation=config.federation.federation,
        contract=configuration.contract(config.federation),
        info=PeerInfo(round=0, steps=0, cases=0, phase=Phase.STARTING, contract=""),
    )
