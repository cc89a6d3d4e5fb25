"""Finds listed sites on the local link by mDNS (`_gossipseg._tcp.local.`).

An announcement is only a hint where to try a handshake; anybody on the link can send one. The addresses in
peers.yaml need no discovery: the transport has them.

TXT record: version, id (site ID), federation, site. It holds nothing about data or training. A killed site is
not reported gone (its record lives for 75 minutes): liveness comes from pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import ifaddr
from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from gossipseg import __version__
from gossipseg.core.types import Site

_log = logging.getLogger(__name__)
SERVICE_TYPE = "_gossipseg._tcp.local."
REFRESH_S = 30.0
_LOOKUP_MS = 3000
_CLOSE_S = 3.0
_MAX_NAMES = 1024
_MAX_LOOKUPS = 8
_MAX_ADDRESSES = 8
_MAX_FOREIGN = 64
_MAX_TEXT = 100
_Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Announcement:
    """An announcement's contents. Nothing in it is proved."""

    site_id: str
    federation: str
    site: str
    version: str
    addresses: tuple[str, ...]
    """host:port, or [IPv6]:port; a link-local address with its zone: [fe80::1%2]:port."""


class MdnsDiscovery:
    """Announces one site and reports the listed ones it sees. For one event loop.

    `on_hint(site, address)` is called when a listed site is seen, and again every REFRESH_S while its record
    lives (a hint may have been dropped because the site was down). `on_foreign(text)` is called once for each
    unused announcement: of another federation, or of a site that is not listed.
    """

    def __init__(
        self,
        *,
        site: Site,
        site_id: str,
        federation: str,
        host: str | Sequence[str],
        port: int,
        listed: Mapping[str, Site],
        on_hint: Callable[[Site, str], None],
        on_foreign: Callable[[str], None],
        interfaces: Sequence[str] = (),
        refresh_s: float = REFRESH_S,
    ) -> None:
        """`host`: the addresses to announce, as IP addresses or names. "", 0.0.0.0 and :: stand for the
        addresses of `interfaces` (IP addresses; empty: all). `listed` maps site IDs to names, with or without
        this site."""
        self.site, self.site_id, self.federation = site, site_id, federation
        self._hosts, self._port = [host] if isinstance(host, str) else list(host), port
        self._listed = dict(listed)
        self._on_hint, self._on_foreign = on_hint, on_foreign
        self._interfaces, self._refresh_s = list(interfaces), refresh_s
        self.reason = ""
        """Why nothing is announced or seen; empty when all is well."""
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookups = asyncio.Semaphore(_MAX_LOOKUPS)
        self._seen: dict[str, Announcement | None] = {}
        self._reported: set[tuple[str, str]] = set()

    @property
    def active(self) -> bool:
        """Whether it listens on the link now."""
        return self._zeroconf is not None

    @property
    def announced(self) -> AsyncServiceInfo | None:
        """The record of this site on the link; None before it is there."""
        return self._info

    @property
    def seen(self) -> tuple[Announcement, ...]:
        """The announcements read so far whose records live, this site's own among them."""
        return tuple(a for a in self._seen.values() if a is not None)

    async def start(self) -> None:
        """Begin to listen and to announce; returns at once. A failure becomes a warning and a `reason`."""
        self._open()
        self._spawn(self._run())

    async def close(self) -> None:
        """Say goodbye on the link and stop."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                if self._browser is not None:
                    await self._browser.async_cancel()
                await zeroconf.async_unregister_all_services()
                await zeroconf.async_close()
        except (TimeoutError, OSError, ZeroconfError) as e:
            _log.warning("mDNS did not end cleanly: %s", e or type(e).__name__)

    def set_listed(self, listed: Mapping[str, Site]) -> None:
        """Take the reloaded list, and judge the announcements seen so far again."""
        self._listed = dict(listed)
        self._reported.clear()
        for announcement in list(self._seen.values()):
            self._judge(announcement)

    # ------------------------------------------------------------ opening and announcing

    def _open(self) -> None:
        try:
            self._zeroconf = _open_zeroconf(self._interfaces)
        except (OSError, RuntimeError, ValueError, ZeroconfError) as e:
            self._warn(
                f"mDNS cannot listen on {', '.join(self._interfaces) or 'any interface'}: {e}; the addresses "
                "in peers.yaml are still used. Check discovery.interfaces (IP addresses of this machine)"
            )
            return
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._on_change])
        self.reason = ""

    async def _run(self) -> None:
        """Announce, then follow interfaces that come and go, and repeat the hints."""
        while True:
            if self._zeroconf is None:
                self._open()
            if self._zeroconf is not None:
                try:
                    await self._announce(self._zeroconf)
                except (OSError, RuntimeError, ValueError, ZeroconfError) as e:
                    self._warn(f"mDNS cannot announce {self.site}: {e or type(e).__name__}")
            await asyncio.sleep(self._refresh_s)
            for announcement in list(self._seen.values()):
                self._judge(announcement)

    async def _announce(self, zeroconf: AsyncZeroconf) -> None:
        # Interfaces may appear after start: a laptop's Wi-Fi, a bridge, a late DHCP lease.
        rescan = getattr(zeroconf, "async_update_interfaces", None)  # zeroconf 0.150 and later
        if rescan is not None:
            await rescan(self._interfaces or None)
        addresses = await self._own_addresses()
        if not addresses:
            self._warn(
                f"mDNS has no address to announce for {self.site}: {', '.join(self._hosts)} gives none. "
                "Set advertise in site.yaml to an address that the other sites can reach"
            )
            return
        packed = [a.packed for a in addresses]
        if self._info is None:
            info = self._service(packed)
            await (await zeroconf.async_register_service(info, allow_name_change=True))
            self._info = info
            _log.info("mDNS announces %s at %s", self._info.name, ", ".join(map(str, addresses)))
        elif sorted(self._info.addresses_by_version(IPVersion.All)) != sorted(packed):
            self._info.addresses = packed
            await (await zeroconf.async_update_service(self._info))
            _log.info("mDNS now announces %s at %s", self._info.name, ", ".join(map(str, addresses)))
        self.reason = ""

    def _service(self, packed: list[bytes]) -> AsyncServiceInfo:
        short = _label(self.site_id)[:12] or "unknown"
        return AsyncServiceInfo(
            SERVICE_TYPE,
            # With part of the ID: the same site name in two federations on one link is no conflict.
            f"{_label(self.site)[:48]}-{short}.{SERVICE_TYPE}",
            port=self._port,
            addresses=packed,
            server=f"gossipseg-{short}.local.",
            properties={
                "version": __version__,
                "id": _clip(self.site_id),
                "federation": _clip(self.federation),
                "site": _clip(self.site),
            },
        )

    async def _own_addresses(self) -> list[_Address]:
        found: list[_Address] = []
        for host in self._hosts:
            if host in ("", "0.0.0.0", "::"):
                found += _interface_addresses(self._interfaces)
            else:
                found += await _resolve(host)
        return list(dict.fromkeys(found))[:_MAX_ADDRESSES]

    # ------------------------------------------------------------ seeing others

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            self._seen.pop(name, None)
        elif name in self._seen or len(self._seen) < _MAX_NAMES:
            self._seen.setdefault(name, None)
            self._spawn(self._look_up(zeroconf, name))

    async def _look_up(self, zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        async with self._lookups:
            try:
                if not await info.async_request(zeroconf, _LOOKUP_MS):
                    return
            except (OSError, ValueError, ZeroconfError) as e:
                _log.debug("mDNS: %r cannot be looked up: %s", name, e)
                return
        if name in self._seen:
            self._seen[name] = announcement = _read(info, local=self._is_local())
            self._judge(announcement)

    def _judge(self, announcement: Announcement | None) -> None:
        a = announcement
        if a is None or not a.site_id or a.site_id == self.site_id:
            return
        if a.federation != _clip(self.federation):
            self._report(a, f"federation {a.federation!r}, site {a.site!r}")
        elif (site := self._listed.get(a.site_id)) is None:
            self._report(a, f"site {a.site!r} is not listed in peers.yaml")
        elif site != self.site:
            for address in a.addresses:
                self._on_hint(site, address)

    def _report(self, a: Announcement, what: str) -> None:
        key = (a.site_id, a.federation)
        if key in self._reported or len(self._reported) >= _MAX_FOREIGN:
            return
        self._reported.add(key)
        self._on_foreign(f"{what} (ID {a.site_id[:15]}…) at {', '.join(a.addresses) or 'no address'}")

    def _is_local(self) -> bool:
        return bool(self._interfaces) and all(ipaddress.ip_address(i).is_loopback for i in self._interfaces)

    # ------------------------------------------------------------ bookkeeping

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("mDNS: %s", error, exc_info=error)

    def _warn(self, text: str) -> None:
        if text != self.reason:
            _log.warning("%s.", text)
        self.reason = text


# ---------------------------------------------------------------- helpers


def _open_zeroconf(interfaces: Sequence[str]) -> AsyncZeroconf:
    """Raises OSError, RuntimeError, ValueError. Without IPv6 in the kernel: IPv4 alone."""
    if interfaces:
        missing = {ipaddress.ip_address(text) for text in interfaces} - set(_machine_addresses())
        if missing:  # zeroconf would fail later, and leave a socket open
            raise ValueError(f"{', '.join(map(str, missing))}: not an address of this machine")
        return AsyncZeroconf(interfaces=list(interfaces))
    try:
        return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.All)
    except OSError as e:
        _log.info("mDNS over IPv4 alone: %s", e)
        return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.V4Only)


def _read(info: AsyncServiceInfo, *, local: bool) -> Announcement:
    properties = info.decoded_properties
    usable = [a for a in info.ip_addresses_by_version(IPVersion.All) if _dialable(a, local)]
    usable.sort(key=lambda a: a.is_link_local)  # those that need a zone last
    return Announcement(
        site_id=_clean(properties.get("id")),
        federation=_clean(properties.get("federation")),
        site=_clean(properties.get("site")),
        version=_clean(properties.get("version")),
        addresses=tuple(_endpoint(a, info.port or 0) for a in usable[:_MAX_ADDRESSES]) if info.port else (),
    )


def _dialable(address: _Address, local: bool) -> bool:
    # Loopback addresses from the link would make us dial our own machine's ports.
    if address.is_loopback:
        return local
    return not (address.is_multicast or address.is_unspecified or address.is_reserved)


def _endpoint(address: _Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _interface_addresses(interfaces: Iterable[str]) -> list[_Address]:
    wanted = [ipaddress.ip_address(text) for text in interfaces]
    if wanted:
        return wanted
    found = [a for a in _machine_addresses() if not a.is_loopback]
    return sorted(found, key=lambda a: (a.is_link_local, a.version, a))


def _machine_addresses() -> list[_Address]:
    texts = (ip.ip if isinstance(ip.ip, str) else ip.ip[0] for a in ifaddr.get_adapters() for ip in a.ips)
    return [ipaddress.ip_address(text.split("%")[0]) for text in texts]


async def _resolve(host: str) -> list[_Address]:
    with contextlib.suppress(ValueError):
        return [ipaddress.ip_address(host)]
    answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(answer[4][0]).split("%")[0]) for answer in answers]


def _label(text: str) -> str:
    """The text with only letters, digits, dashes and underscores, as a DNS label allows."""
    return "".join(c for c in text if c.isascii() and (c.isalnum() or c in "-_")).strip("-")


def _clip(text: str) -> str:
    """A TXT entry holds 255 bytes with its key."""
    return text.encode()[:200].decode(errors="ignore")


def _clean(text: str | None) -> str:
    """A stranger's text, fit for a log: printable, and not long."""
    return "".join(c if c.isprintable() else "?" for c in text or "")[: 2 * _MAX_TEXT]
