"""A hospital's administrator replaces a key, and a site is removed, under three running daemons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gossipseg import trust
from tests.e2e.federation import Federation, Site, federation

pytestmark = [pytest.mark.e2e, pytest.mark.faults]


def ctl(*arguments: object) -> str:
    """What the command printed; it must succeed."""
    command = [sys.executable, "-m", "gossipseg.ctl.main", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def troubles(site: Site) -> list[Any]:
    """A starved machine lets sites suspect each other for a moment: that alone is none."""
    names = ("peer_refused", "member_dead", "record_forged", "offence", "transfer_failed")
    return [e for e in site.events(*names)]


def reload_all(f: Federation) -> None:
    for site in f.sites.values():
        ctl("reload", "--config", site.config)


def exchanged(f: Federation, name: str) -> tuple[int, int]:
    status = f[name].status()
    return (status.sent, status.received) if status else (0, 0)


def more(f: Federation, name: str, before: tuple[int, int]) -> bool:
    now = exchanged(f, name)
    return now[0] > before[0] and now[1] > before[1]


def test_a_key_is_replaced_and_then_its_site_removed(tmp_path: Path) -> None:
    with federation(tmp_path, ("north", "south", "west")) as f:
        soon = trust.create_identity("south", tmp_path / "soon", days=10)
        folder = f["south"].folder / "identity"
        (folder / trust.KEY_FILE).write_bytes(soon.key_pem)
        (folder / trust.CERTIFICATE_FILE).write_bytes(soon.certificate_pem)
        f.edit(lambda doc: doc["sites"][1].update(certificate=soon.certificate_pem.decode()))
        for site in f.sites.values():
            site.start()
        for site in f.sites.values():
            f.until("all alive", lambda s=site: (d := s.status()) is not None and d.members.alive == 2)
        f.until("models travel", lambda: more(f, "north", (0, 0)))
        pids, old = {n: s.pid for n, s in f.sites.items()}, f["north"].status()
        assert old is not None and not troubles(f["north"])

        # certificates that end are told at both ends, in status and as an event
        for name, words in (("south", "this site's certificate expires in"), ("west", "south's certificate")):
            status = f[name].status()
            assert status is not None and any(words in r for r in status.reasons), status
            assert [e["site"] for e in f[name].events("certificate_expires")] == ["south"]

        # the rotation
        ctl("rotate", "--config", f["north"].config)
        following = f["north"].folder / "identity" / "cert.next.pem"
        ctl("peers", "certify", f.peers_file, "--name", "north", "--certificate", following)
        reload_all(f)
        said = ctl("rotate", "--finish", "--config", f["north"].config)
        assert "The daemon uses it from now on" in said
        before = exchanged(f, "north")
        f.until("models travel with the new key", lambda: more(f, "north", before))
        now = f["north"].folder / "identity" / "cert.pem"
        ctl("peers", "certify", f.peers_file, "--name", "north", "--certificate", now, "--only")
        reload_all(f)
        before = exchanged(f, "north")
        f.until("models travel, the old key gone", lambda: more(f, "north", before))
        status = f["north"].status()
        assert status is not None and status.id == trust.site_id(now.read_bytes()) != old.id
        assert {n: s.pid for n, s in f.sites.items()} == pids
        assert {n: troubles(s) for n, s in f.sites.items()} == {n: [] for n in f.sites}
        assert "nothing changed" in ctl("reload", "--config", f["north"].config)

        # a file with a mistake changes nothing
        good = f.peers_file.read_text()
        f.peers_file.write_text(good.replace("BEGIN CERTIFICATE", "BEGIN NONSENSE", 1))
        with pytest.raises(AssertionError, match="stay in force"):
            ctl("reload", "--config", f["west"].config)
        f.peers_file.write_text(good)

        # north is removed: both others refuse it from now on
        f.edit(lambda doc: doc.update(sites=[s for s in doc["sites"] if s["name"] != "north"]))
        for name in ("south", "west"):
            assert "north removed" in ctl("reload", "--config", f[name].config)
        f.until("it is told", lambda: (d := f["north"].status()) is not None and d.members.refused == 2)
        before = exchanged(f, "south")
        f.until("the others go on", lambda: more(f, "south", before))
        assert f["south"].peer("north") is None
