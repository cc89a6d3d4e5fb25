"""Three daemons, each in a network namespace, on one bridge: they find each other by mDNS alone."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.federation import federation

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def lan(hosts: Sequence[str]) -> Iterator[dict[str, str]]:
    """A bridge in a namespace of its own, and one namespace a host on it; host → namespace."""
    token = secrets.token_hex(2)
    switch, spaces = f"gs{token}-switch", {host: f"gs{token}-{host}" for host in hosts}
    try:
        try:
            for space in (switch, *spaces.values()):
                ip("netns", "add", space)
                ip("-n", space, "link", "set", "lo", "up")
            ip("-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            ip("-n", switch, "link", "set", "br0", "up")
            for i, space in enumerate(spaces.values()):
                ip(
                    "-n",
                    switch,
                    "link",
                    "add",
                    f"p{i}",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    space,
                )
                ip("-n", switch, "link", "set", f"p{i}", "master", "br0", "up")
                ip("-n", space, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "eth0", "up")
        except subprocess.CalledProcessError as e:
            pytest.skip(f"no network namespaces or bridges here: {e.stderr.strip()}")
        yield spaces
    finally:
        for space in (switch, *spaces.values()):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def test_sites_find_each_other_by_mdns_alone_and_exchange_models(tmp_path: Path) -> None:
    names = ["north", "south", "east"]
    with lan(names) as spaces:
        site = {"listen": "0.0.0.0:7443", "discovery": {"static": False, "mdns": True}}
        # The listed addresses are wrong on purpose: nobody listens there.
        nowhere = {name: f"127.0.0.1:{port}" for port, name in enumerate(names, 1)}
        prefixes = {name: ["ip", "netns", "exec", spaces[name]] for name in names}
        with federation(tmp_path, names, addresses=nowhere, prefixes=prefixes, site=site) as f:
            for s in f.sites.values():
                s.start()
            for who in names:
                for whom in set(names) - {who}:
                    f.until(f"{who} sees {whom}", lambda who=who, whom=whom: f.sees(who, whom, "alive"))
            for name in names:
                f.until(
                    f"{name} took a model in",
                    lambda name=name: (s := f[name].status()) is not None and s.accepted >= 1,
                )
            status = f["north"].status()
            assert status is not None and status.discovery.mdns and not status.discovery.static
            assert [s.end() for s in f.sites.values()] == [0, 0, 0]
