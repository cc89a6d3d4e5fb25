"""mDNS between two network namespaces joined by a virtual cable: a link of its own, IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

DEADLINE_S = 30.0
pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]

SITE = """
import asyncio, json, sys, time
from gossipseg.discovery import MdnsDiscovery
settings = json.loads(sys.argv[1])

def say(what, **fields):
    print(json.dumps({"what": what, **fields}), flush=True)

async def main():
    discovery = MdnsDiscovery(
        **settings,
        on_hint=lambda site, address: say("hint", site=site, address=address),
        on_foreign=lambda text: say("foreign", text=text),
    )
    await discovery.start()
    say("started", reason=discovery.reason)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await discovery.close()
    say("closed")

asyncio.run(main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Cable:
    """Two namespaces, `a` and `b`, whose only link but loopback is the cable between them."""

    def __init__(self) -> None:
        token = secrets.token_hex(3)
        self.a, self.b = f"gsg-{token}-a", f"gsg-{token}-b"
        self.names = {self.a: f"g{token}a", self.b: f"g{token}b"}

    def make(self) -> None:
        for namespace in (self.a, self.b):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        (a, b) = self.names.values()
        # Made inside a namespace: this machine's own interfaces are never part of it.
        ip("-n", self.a, "link", "add", a, "type", "veth", "peer", "name", b, "netns", self.b)

    def address(self, namespace: str, *addresses: str) -> None:
        ip("-n", namespace, "link", "set", self.names[namespace], "up")
        for address in addresses:
            options = ["nodad"] if ":" in address else []
            ip("-n", namespace, "addr", "add", address, "dev", self.names[namespace], *options)

    def remove(self) -> None:
        for namespace in (self.a, self.b):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable()
    try:
        try:
            cable.make()
        except subprocess.CalledProcessError as e:
            pytest.skip(f"no network namespaces here: {e.stderr.strip()}")
        yield cable
    finally:
        cable.remove()


class Site:
    """A process with one MdnsDiscovery in a namespace."""

    def __init__(self, namespace: str, site: str, port: int, **changes: Any) -> None:
        settings = {
            "site": site,
            "site_id": f"ID-{site}",
            "federation": "hospitals",
            "host": "0.0.0.0",
            "port": port,
            "listed": {"ID-north": "north", "ID-south": "south"},
            "refresh_s": 1.0,
            **changes,
        }
        command = [sys.executable, "-c", SITE, json.dumps(settings)]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def until(self, what: str, **fields: Any) -> dict[str, Any]:
        """Wait for a line that matches."""
        end = time.monotonic() + DEADLINE_S
        while True:
            line = self._lines.get(timeout=max(0.01, end - time.monotonic()))
            self.seen.append(line)
            if line["what"] == what and fields.items() <= line.items():
                return line

    def until_hints(self, addresses: set[str]) -> None:
        missing = set(addresses)
        while missing:
            missing.discard(self.until("hint")["address"])

    def end(self) -> None:
        self.process.stdin.close()
        try:
            assert self.process.wait(DEADLINE_S) == 0
        finally:
            self.process.kill()
            self._reader.join(DEADLINE_S)
            self.process.stdout.close()


@contextlib.contextmanager
def site(namespace: str, name: str, port: int, **changes: Any) -> Iterator[Site]:
    running = Site(namespace, name, port, **changes)
    try:
        running.until("started")
        yield running
    finally:
        running.end()


def test_both_address_families(cable: Cable) -> None:
    cable.address(cable.a, "10.9.0.1/24", "fd09::1/64")
    cable.address(cable.b, "10.9.0.2/24", "fd09::2/64")
    with site(cable.a, "north", 7001) as north, site(cable.b, "south", 7002) as south:
        north.until_hints({"10.9.0.2:7002", "[fd09::2]:7002"})
        south.until_hints({"10.9.0.1:7001", "[fd09::1]:7001"})
        hints = [line["address"] for line in north.seen if line["what"] == "hint"]
        assert not any(address.startswith(("127.", "[::1]", "10.9.0.1:")) for address in hints)
        assert {line.get("site") for line in north.seen if line["what"] == "hint"} == {"south"}


def test_ipv6_alone(cable: Cable) -> None:
    cable.address(cable.a, "fd09::1/64")
    cable.address(cable.b, "fd09::2/64")
    with site(cable.a, "north", 7001, host="::") as north, site(cable.b, "south", 7002, host="::") as south:
        north.until_hints({"[fd09::2]:7002"})
        south.until_hints({"[fd09::1]:7001"})


def test_the_advertised_address_and_the_interface_can_be_chosen(cable: Cable) -> None:
    cable.address(cable.a, "10.9.0.1/24", "10.8.0.1/24")
    cable.address(cable.b, "10.9.0.2/24")
    chosen = {"host": "10.8.0.1", "interfaces": ["10.9.0.1"]}
    with site(cable.a, "north", 7001, **chosen), site(cable.b, "south", 7002) as south:
        south.until_hints({"10.8.0.1:7001"})
        assert {line["address"] for line in south.seen if line["what"] == "hint"} == {"10.8.0.1:7001"}


def test_a_foreign_federation_on_the_link(cable: Cable) -> None:
    cable.address(cable.a, "10.9.0.1/24")
    cable.address(cable.b, "10.9.0.2/24")
    with site(cable.a, "north", 7001) as north, site(cable.b, "south", 7002, federation="banks"):
        assert "federation 'banks', site 'south'" in north.until("foreign")["text"]
        assert not [line for line in north.seen if line["what"] == "hint"]


def test_a_link_that_comes_up_after_the_daemon(cable: Cable) -> None:
    cable.address(cable.b, "10.9.0.2/24")
    with site(cable.b, "south", 7002) as south, site(cable.a, "north", 7001) as north:
        cable.address(cable.a, "10.9.0.1/24")
        south.until_hints({"10.9.0.1:7001"})
        north.until_hints({"10.9.0.2:7002"})
