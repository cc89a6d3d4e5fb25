"""mDNS on the loopback interface, with real zeroconf instances. Nothing leaves this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from gossipseg.discovery import SERVICE_TYPE, MdnsDiscovery

LOOPBACK = "127.0.0.1"
DEADLINE_S = 15.0


class Link:
    """A federation of this test alone; other tests may be on the same loopback at the same time."""

    def __init__(self, sites: str = "north south") -> None:
        self.token = secrets.token_hex(4).upper()
        self.federation = f"federation-{self.token}"
        self.ids = {site: f"{self.token}-{site}-{secrets.token_hex(4)}" for site in sites.split()}
        self.listed = {i: site for site, i in self.ids.items()}
        self.hints: dict[str, list[tuple[str, str]]] = {}
        self.foreign: dict[str, list[str]] = {}
        self.changed = asyncio.Event()

    def site(self, site: str, port: int, **changes: Any) -> MdnsDiscovery:
        name = changes.pop("name", site)
        hints, foreign = self.hints.setdefault(name, []), self.foreign.setdefault(name, [])

        def on_hint(peer: str, address: str) -> None:
            hints.append((peer, address))
            self.changed.set()

        def on_foreign(text: str) -> None:
            if self.token in text:
                foreign.append(text)
                self.changed.set()

        settings: dict[str, Any] = {
            "site_id": self.ids.get(site, f"{self.token}-{site}"),
            "federation": self.federation,
            "host": LOOPBACK,
            "listed": self.listed,
            "interfaces": [LOOPBACK],
        }
        return MdnsDiscovery(
            site=site, port=port, on_hint=on_hint, on_foreign=on_foreign, **{**settings, **changes}
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.2)


@contextlib.asynccontextmanager
async def running(*sites: MdnsDiscovery) -> AsyncIterator[None]:
    try:
        for site in sites:
            await site.start()
        yield
    finally:
        await asyncio.gather(*(site.close() for site in sites))


@contextlib.asynccontextmanager
async def announced(*services: tuple[str, Mapping[Any, Any], int, bytes]) -> AsyncIterator[None]:
    """Anything that somebody on the link may say: (name, TXT, port, address)."""

    async def announce(name: str, properties: Mapping[Any, Any], port: int, address: bytes) -> None:
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port=port,
            addresses=[address],
            properties=dict(properties),
            server=f"{name}.local.",
        )
        await (await zeroconf.async_register_service(info))

    zeroconf = AsyncZeroconf(interfaces=[LOOPBACK])
    try:
        await asyncio.gather(*(announce(*service) for service in services))
        yield
    finally:
        await zeroconf.async_unregister_all_services()
        await zeroconf.async_close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_two_sites_see_each_other_and_not_themselves() -> None:
    async def test() -> None:
        link = Link()
        async with running(link.site("north", 7001), link.site("south", 7002)):
            await link.until(lambda: bool(link.hints["north"] and link.hints["south"]))
        assert set(link.hints["north"]) == {("south", "127.0.0.1:7002")}
        assert set(link.hints["south"]) == {("north", "127.0.0.1:7001")}
        assert link.foreign == {"north": [], "south": []}

    run(test)


def test_its_own_announcement_is_no_news() -> None:
    async def test() -> None:
        link = Link()
        alone = link.site("north", 7001, listed={})  # not even when it is not listed itself
        async with running(alone):
            own = link.ids["north"]
            await link.until(lambda: any(a.site_id == own for a in alone.seen))
            alone.set_listed({})
        assert link.hints["north"] == link.foreign["north"] == []

    run(test)


def test_a_late_site_finds_those_before_it_and_a_restarted_one_its_new_port() -> None:
    async def test() -> None:
        link = Link()
        async with running(link.site("north", 7001)):
            async with running(link.site("south", 7002)):
                await link.until(lambda: ("south", "127.0.0.1:7002") in link.hints["north"])
            async with running(link.site("south", 7003)):
                await link.until(lambda: ("south", "127.0.0.1:7003") in link.hints["north"])
                await link.until(lambda: ("north", "127.0.0.1:7001") in link.hints["south"])

    run(test)


def test_a_foreign_federation_and_an_unlisted_site_are_told_once_and_never_dialled() -> None:
    async def test() -> None:
        link = Link()
        north = link.site("north", 7001, refresh_s=0.2)
        stranger = link.site("stranger", 7002)
        foreign = link.site("south", 7003, federation=f"other-{link.token}", name="foreign")
        async with running(north, stranger, foreign, link.site("south", 7004)):
            await link.until(lambda: len(link.foreign["north"]) >= 2 and len(link.hints["north"]) >= 6)
            await link.until(lambda: len({site for site, _ in link.hints["stranger"]}) >= 2)
        seen = sorted(link.foreign["north"])
        assert len(seen) == 2, seen
        assert seen[0].startswith(f"federation 'other-{link.token}', site 'south' (ID {link.token}-")
        assert (
            seen[1].startswith("site 'stranger' is not listed in peers.yaml") and "127.0.0.1:7002" in seen[1]
        )
        assert set(link.hints["north"]) == {("south", "127.0.0.1:7004")}
        assert {site for site, _ in link.hints["stranger"]} == {"north", "south"}, (
            "it may know us: not our loss"
        )
        assert all(f"federation '{link.federation}'" in text for text in link.foreign["foreign"])

    run(test)


def test_hints_come_again_for_a_site_that_was_down_when_they_first_came() -> None:
    async def test() -> None:
        link = Link()
        async with running(link.site("north", 7001, refresh_s=0.1), link.site("south", 7002)):
            await link.until(lambda: len(link.hints["north"]) >= 4)
        assert len(set(link.hints["north"])) == 1

    run(test)


def test_a_new_list_is_applied_to_what_was_seen_before() -> None:
    async def test() -> None:
        link = Link()
        north = link.site("north", 7001, listed={})
        async with running(north, link.site("south", 7002)):
            await link.until(lambda: len(link.foreign["north"]) == 1)
            assert link.hints["north"] == []
            north.set_listed(link.listed)
            assert link.hints["north"] == [("south", "127.0.0.1:7002")]
            north.set_listed({})
            assert len(link.foreign["north"]) == 2

    run(test)


def test_two_daemons_with_one_key_do_not_stop_each_other(caplog) -> None:
    caplog.set_level(logging.INFO, "gossipseg.discovery")

    def names() -> set[str]:
        return {str(r.args[0]) for r in caplog.records if r.msg.startswith("mDNS announces")}

    async def test() -> None:
        link = Link()
        twin = link.site("north", 7003, name="twin")
        async with running(link.site("north", 7001)):
            await link.until(lambda: len(names()) == 1)
            await asyncio.sleep(1.5)  # whoever sent a record within the last second does not send it again
            async with running(twin, link.site("south", 7002)):
                await link.until(lambda: len(names()) == 3)
                both = {("north", "127.0.0.1:7001"), ("north", "127.0.0.1:7003")}
                await link.until(lambda: both <= set(link.hints["south"]))
        assert link.foreign["north"] == link.foreign["twin"] == [] and twin.reason == ""
        assert any("-2." in name for name in names()), names()

    for last in (False, False, True):  # a loop that stood still while it probed has not heard the other
        try:
            return run(test)
        except TimeoutError:
            if last:
                raise
            caplog.clear()


def test_what_strangers_write_does_no_harm() -> None:
    async def test() -> None:
        link = Link()
        north, south_id = link.site("north", 7001), link.ids["south"]
        ours = {"federation": link.federation, "id": south_id, "site": "south"}
        control = {"id": f"{link.token}\x1b[2J\n", "federation": "f\x1b]0;\x07\n" * 10, "site": "x\n" * 60}
        loopback, multicast = b"\x7f\0\0\1", b"\xe0\0\0\1"
        services = [
            ("empty", {}, 9, loopback),
            ("valueless", {"id": None, "federation": None}, 9, loopback),
            ("binary", {"id": b"\xff\xfe" * 50, "federation": b"\0" * 200}, 9, loopback),
            ("control", control, 9, loopback),
            ("misnamed", {**ours, "site": "north"}, 9, loopback),  # the ID decides, not the name
            ("port0", ours, 0, loopback),
            ("multicast", ours, 8, multicast),
        ]
        async with announced(*((f"{s[0]}-{link.token}", *s[1:]) for s in services)), running(north):
            await link.until(lambda: bool(link.hints["north"] and link.foreign["north"]))
            await link.until(lambda: len(north.seen) >= 5)
        assert set(link.hints["north"]) == {("south", "127.0.0.1:9")}
        assert all(text.isprintable() and len(text) < 600 for text in link.foreign["north"])

    run(test)


def test_loopback_announced_on_a_real_link_is_not_dialled() -> None:
    async def test() -> None:
        link = Link()
        north = link.site("north", 7001)
        north._is_local = lambda: False  # type: ignore[method-assign]
        async with running(north, link.site("south", 7002), link.site("stranger", 7003)):
            await link.until(lambda: bool(link.foreign["north"] and link.hints["south"]))
        assert link.hints["north"] == []
        assert link.foreign["north"][0].endswith("at no address")

    run(test)


def test_what_is_announced() -> None:
    hosts: dict[str, Any] = {
        "none": "",
        "any4": "0.0.0.0",
        "any6": "::",
        "name": "localhost",
        "list": [LOOPBACK],
    }

    async def test() -> None:
        link = Link("south " + " ".join(hosts))
        sites = [link.site(name, 7001, host=host) for name, host in hosts.items()]
        async with running(link.site("south", 7002), *sites):
            wanted = {(name, "127.0.0.1:7001") for name in hosts}
            await link.until(lambda: wanted <= set(link.hints["south"]))

    run(test)


@pytest.mark.parametrize("interface", ["eth0", "203.0.113.7", "2001:db8::7"])
def test_a_link_that_cannot_be_opened_is_a_warning(caplog, interface: str) -> None:
    async def test() -> None:
        link = Link()
        north = link.site("north", 7001, interfaces=[interface], refresh_s=0.001)
        tries = []
        real, north._open = north._open, lambda: (tries.append(1), real())[1]  # type: ignore[method-assign]
        async with running(north):
            await link.until(lambda: len(tries) >= 3)
            assert not north.active and interface in north.reason
        assert link.hints["north"] == []

    run(test)
    warnings = [r for r in caplog.records if r.name == "gossipseg.discovery"]
    assert len(warnings) == 1 and warnings[0].levelno == logging.WARNING
    assert interface in warnings[0].getMessage() and "discovery.interfaces" in warnings[0].getMessage()


def test_no_socket_is_a_warning_and_it_is_tried_again(caplog, monkeypatch) -> None:
    from gossipseg import discovery

    real, refused = discovery._open_zeroconf, []

    def refuse_twice(interfaces: list[str]) -> AsyncZeroconf:
        if len(refused) < 2:
            refused.append(1)
            raise PermissionError("Operation not permitted")
        return real(interfaces)

    monkeypatch.setattr(discovery, "_open_zeroconf", refuse_twice)

    async def test() -> None:
        link = Link()
        north = link.site("north", 7001, refresh_s=0.05)
        async with running(link.site("south", 7002)):
            refused.clear()
            await north.start()
            assert not north.active and "Operation not permitted" in north.reason
            await link.until(lambda: north.active and bool(link.hints["north"]))
            assert north.reason == ""
            await north.close()

    refused += [1, 1]
    run(test)
    assert len([r for r in caplog.records if "Operation not permitted" in r.getMessage()]) == 1


def test_a_name_that_does_not_resolve_is_a_warning() -> None:
    async def test() -> None:
        link = Link()
        north = link.site("north", 7001, host=[])
        async with running(north, link.site("south", 7002)):
            await link.until(lambda: bool(north.reason and link.hints["north"]))
            assert "no address to announce" in north.reason and "advertise" in north.reason
        assert link.hints["south"] == []

    run(test)


def test_closing_before_anything_was_announced() -> None:
    async def test() -> None:
        link = Link()
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(3):
            north = link.site("north", 7001)
            await north.start()
            await north.close()
            await north.close()
            assert not north.active
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208

    run(test)


def test_long_and_odd_names_fit_into_the_record() -> None:
    async def test() -> None:
        link = Link()
        site, federation = "n" * 63, f"{link.token} Föderation „Köln“ " * 30
        link.ids[site] = "A" * 64 + link.token
        link.listed[link.ids[site]] = site
        async with running(
            link.site(site, 7001, federation=federation), link.site("south", 7002, federation=federation)
        ):
            await link.until(lambda: (site, "127.0.0.1:7001") in link.hints["south"])

    run(test)
