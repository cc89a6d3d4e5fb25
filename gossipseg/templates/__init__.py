"""Files of an installed gossipseg: peers.yaml, the systemd unit, the alert rules.

What belongs here: copies of the files at the root of the source, in systemd/ and docs/admin/, which `make
templates` renews and a test compares. What must not: anything without such a source.
"""

from __future__ import annotations

from importlib.resources import files

SOURCES = {
    "peers.yaml": "peers.yaml",
    "gossipsegd.service": "systemd/gossipsegd.service",
    "alerts.yaml": "docs/admin/monitoring/alerts.yaml",
}
"""Name here → path in the source."""
_EXAMPLE = """\
# This example loads as it stands. Copy it, and write your own sites in place of the three at the end
# (their keys have been thrown away). A key"""
_WRITTEN = """\
# Written by `gossipctl init --federation`: set name and task, and add each site with `gossipctl peers add`.
# A key"""


def text(name: str) -> str:
    """The text of the file in the source."""
    return (files(__name__) / name).read_text(encoding="utf-8")


def federation() -> str:
    """peers.yaml for a new federation: without the example's sites."""
    head, _, _ = text("peers.yaml").partition("\nsites:\n")
    return head.replace(_EXAMPLE, _WRITTEN) + "\n"
