"""A stranger on the local link announces itself with a listed site's name and ID: it is given nothing.

Real zeroconf on the loopback interface, real gRPC over TLS. Names and IDs are public; the key is not.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from gossipseg.core.messages import Ping
from gossipseg.discovery import SERVICE_TYPE, MdnsDiscovery
from gossipseg.errors import PeerError, PeerUntrusted
from gossipseg.trust import create_identity
from gossipseg.wire.grpc_link import MAX_HINTS
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.transport import PeerEndpoint
from tests.wire.harness import INFO, StoreHandler

PING = Ping((), INFO)
LOOPBACK = "127.0.0.1"
DEADLINE_S = 40.0
ANNOUNCEMENTS = 20


@pytest.mark.faults
def test_a_stranger_in_a_listed_sites_name_on_the_local_link(tmp_path: Path, seen: Any) -> None:
    async def body() -> None:
        names, federation = ("north", "south", "impostor"), f"federation-{secrets.token_hex(4)}"
        keys = {n: create_identity(n if n != "impostor" else "south", tmp_path / n) for n in names}
        handlers = {n: StoreHandler(None) for n in names}  # type: ignore[arg-type]
        sites = {
            n: GrpcTransport(
                "south" if n == "impostor" else n,
                listen=f"{LOOPBACK}:0",
                identity=keys[n],
                peers={},
                reconnect_max_s=0.05,
            )
            for n in names
        }
        for name, transport in sites.items():
            await transport.start(handlers[name])
        certificate = {n: (key.certificate_pem,) for n, key in keys.items()}
        north = PeerEndpoint("north", sites["north"].address, certificate["north"])
        for other in ("south", "impostor"):
            sites[other].set_peers({"north": north})
        nowhere = PeerEndpoint("south", "", certificate["south"])
        sites["north"].set_peers({"south": nowhere})

        hints: list[str] = []

        def hint(site: str, address: str) -> None:
            hints.append(address)
            sites["north"].hint_address(site, address)

        discovery = MdnsDiscovery(
            site="north", site_id=keys["north"].site_id, federation=federation, host=LOOPBACK,
            port=int(sites["north"].address.rpartition(":")[2]), listed={keys["south"].site_id: "south"},
            on_hint=hint, on_foreign=lambda _: None, interfaces=[LOOPBACK],
        )  # fmt: skip
        await discovery.start()
        zeroconf = AsyncZeroconf(interfaces=[LOOPBACK])
        try:
            async with asyncio.timeout(DEADLINE_S):
                properties = _properties(await _own_record(discovery), keys["south"].site_id, "south")
                port = int(sites["impostor"].address.rpartition(":")[2])
                for i in range(ANNOUNCEMENTS):
                    info = AsyncServiceInfo(
                        SERVICE_TYPE,
                        f"{secrets.token_hex(4)}-{i}.{SERVICE_TYPE}",
                        port=port if i == 0 else 1 + i,
                        addresses=[bytes([127, 0, 0, 1])],
                        properties=properties,
                        server=f"h{i}.local.",
                    )
                    await zeroconf.async_register_service(info)
                while sites["impostor"].address not in hints:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                assert len(sites["north"].links["south"].addresses) <= MAX_HINTS
                sites["north"].hint_address("south", sites["impostor"].address)
                refused = 0
                for _ in range(8):  # it is tried, and its key is not south's
                    try:
                        await sites["north"].request("south", PING, 2.0)
                    except PeerError as e:
                        refused += 1
                        assert "stored" not in e.reason
                assert refused == 8 and handlers["impostor"].requests == []
                # the other way round: the stranger calls, and is nobody
                try:
                    await sites["impostor"].request("north", PING, 5.0)
                    raise AssertionError("a stranger was answered")
                except PeerUntrusted as e:
                    assert "does not accept" in e.detail or "does not list" in e.detail
                assert handlers["north"].requests == []
                # south itself comes up: its hint works at once, whatever else is announced
                sites["north"].hint_address("south", sites["south"].address)
                while handlers["south"].requests == []:
                    try:
                        await sites["north"].request("south", PING, 2.0)
                    except PeerError:
                        sites["north"].hint_address("south", sites["south"].address)
                assert handlers["impostor"].requests == []
                seen(
                    f"{ANNOUNCEMENTS} announcements in south's name, {len(set(hints))} addresses hinted, at "
                    f"most {MAX_HINTS} kept; {refused} of 8 calls broken off at the handshake, none received"
                )
        finally:
            await zeroconf.async_close()
            await discovery.close()
            for transport in sites.values():
                await transport.close()

    asyncio.run(body())


async def _own_record(discovery: MdnsDiscovery) -> AsyncServiceInfo:
    """What the real site announces: the stranger copies it."""
    while (announced := discovery.announced) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return announced


def _properties(own: AsyncServiceInfo, site_id: str, site: str) -> dict[bytes, bytes]:
    mine = {k: v for k, v in own.properties.items() if v is not None}
    text = {k: v.replace(b"north", site.encode()) for k, v in mine.items()}
    return {k: site_id.encode() if k in (b"id", b"site_id") else v for k, v in text.items()}
