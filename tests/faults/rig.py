"""Faulty networks for real daemons: a namespace for each site, joined by a bridge in one of their own.

Loss and one-way cuts are nftables rules on a site's input, bandwidth is tbf on its way out, a flapping link
is the cable's other end going down and up. Nothing of it touches this machine's own interfaces.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

NEEDS = ("ip", "nft", "tc")
PORT = 7443
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(tool) is None for tool in NEEDS),
    reason=f"needs root and {', '.join(NEEDS)}",
)


def run(*command: str, stdin: str | None = None) -> None:
    """Raises AssertionError with what the tool said."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


@dataclass
class Lan:
    """Sites' namespaces by name, all on one bridge."""

    token: str
    sites: dict[str, int]
    made: list[str] = field(default_factory=list)

    @property
    def hub(self) -> str:
        return f"gsg-{self.token}-hub"

    def namespace(self, site: str) -> str:
        return f"gsg-{self.token}-{self.sites[site]}"

    def ip(self, site: str) -> str:
        return f"10.77.0.{self.sites[site]}"

    @property
    def addresses(self) -> dict[str, str]:
        return {site: f"{self.ip(site)}:{PORT}" for site in self.sites}

    @property
    def prefixes(self) -> dict[str, Sequence[str]]:
        return {site: ("ip", "netns", "exec", self.namespace(site)) for site in self.sites}

    def make(self) -> None:
        self._namespace(self.hub)
        run("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "br0", "up")
        for site, number in self.sites.items():
            inside, port = self.namespace(site), f"p{number}"
            self._namespace(inside)
            run("ip", "-n", self.hub, "link", "add", port, "type", "veth", "peer", "name", "eth0",
                "netns", inside)  # fmt: skip
            run("ip", "-n", self.hub, "link", "set", port, "master", "br0", "up")
            run("ip", "-n", inside, "addr", "add", f"{self.ip(site)}/24", "dev", "eth0")
            # One packet at a time, as on a real cable: what is as large as a model is no packet.
            run("ip", "-n", inside, "link", "set", "eth0", "gso_max_segs", "1")
            run("ip", "-n", inside, "link", "set", "eth0", "up")

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self.made.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def remove(self) -> None:
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    # ------------------------------------------------------------ faults

    def _input(self, site: str, *rules: str) -> None:
        lines = "\n".join(rules)
        table = f"""table inet faults
delete table inet faults
table inet faults {{
chain input {{
type filter hook input priority 0; policy accept;
iifname "lo" accept
{lines}
}}
}}
"""
        run(*self.prefixes[site], "nft", "-f", "-", stdin=table)

    def lose(self, site: str, percent: int) -> None:
        """Of what comes in at the site, so many packets in a hundred are lost."""
        self._input(site, f"numgen random mod 100 < {percent} drop")

    def deafen(self, site: str, *to: str) -> None:
        """The site hears nothing from these (from anybody, if none is named), and is heard itself."""
        self._input(site, *([f"ip saddr {self.ip(other)} drop" for other in to] or ["drop"]))

    def shrink(self, site: str, most_bytes: int) -> None:
        """A hole in the path's MTU: larger packets to the site are lost, and nobody is told."""
        self._input(site, f"meta length > {most_bytes} drop")

    def bar(self, site: str) -> None:
        """A one-way firewall: nobody opens a connection to the site; those that it opens are let be."""
        self._input(site, "tcp flags & (syn | ack) == syn drop")

    def heal(self, site: str) -> None:
        self._input(site)

    def slow(self, site: str, kbit_per_s: int) -> None:
        """Bound what the site sends."""
        run("tc", "-n", self.namespace(site), "qdisc", "replace", "dev", "eth0", "root", "tbf",
            "rate", f"{kbit_per_s}kbit", "burst", "16kb", "latency", "400ms")  # fmt: skip

    def unslow(self, site: str) -> None:
        run("tc", "-n", self.namespace(site), "qdisc", "del", "dev", "eth0", "root")

    def reaches(self, site: str, other: str) -> bool:
        """Whether a connection can be made at all."""
        connect = f"exec 3<>/dev/tcp/{self.ip(other)}/{PORT}"
        command = [*self.prefixes[site], "timeout", "1", "bash", "-c", connect]
        return subprocess.run(command, capture_output=True).returncode == 0

    def link(self, site: str, up: bool) -> None:
        """Plug the site's cable in, or out, at the bridge."""
        run("ip", "-n", self.hub, "link", "set", f"p{self.sites[site]}", "up" if up else "down")


@contextlib.contextmanager
def lan(*sites: str) -> Iterator[Lan]:
    made = Lan(secrets.token_hex(3), {site: i for i, site in enumerate(sites, 1)})
    try:
        try:
            made.make()
            made.heal(sites[0])
        except AssertionError as e:
            pytest.skip(f"no network namespaces with nftables here: {e}")
        yield made
    finally:
        made.remove()
