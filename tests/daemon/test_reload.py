"""SIGHUP and `gossipctl reload`, and what a daemon remembers: only the list of sites may change under it."""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from gossipseg import trust
from gossipseg.config import Config
from gossipseg.core import events
from gossipseg.core import events as ev
from gossipseg.core.types import payload
from gossipseg.daemon import main as daemon_main
from gossipseg.daemon.reload import listed
from gossipseg.errors import ConfigError, LocalError
from gossipseg.trust.making import self_signed
from tests.daemon.harness import daemon_of, files_only
from tests.e2e.federation import Federation


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south", "west") as f:
        yield f


def without(name: str) -> Any:
    return lambda doc: doc.update(sites=[s for s in doc["sites"] if s["name"] != name])


def links_of(daemon: Any) -> dict[str, Any]:
    """Its links to peers, as they are now."""
    return dict(daemon.transport.links)


async def test_a_removed_site_is_gone_everywhere(files: Federation) -> None:
    daemon = daemon_of(files)
    files.edit(without("west"))
    daemon.runtime.node.step(events.Start(), 0.0)
    await daemon.reload()
    assert set(daemon.runtime.node.members) == {"south"}
    assert daemon.runtime.intake.verifier.sites == {"north", "south"}
    assert set(links_of(daemon)) == {"south"}
    await daemon.transport.close()


async def test_site_yaml_counts_from_the_next_start(files: Federation, tmp_path: Path) -> None:
    daemon = daemon_of(files)
    before = daemon.config.site
    files["north"].edit(state_dir=str(tmp_path / "elsewhere"), rounds=3, insecure=True)
    await daemon.reload()
    assert daemon.config.site == daemon.runtime.config.site == before
    assert not daemon.runtime.intake.verifier.verify("south", b"said", b"unsigned")
    await daemon.transport.close()


async def test_other_sections_count_from_the_next_start_and_are_told_each_time(files: Federation) -> None:
    daemon = daemon_of(files)
    before = daemon.config.federation.gossip
    files.edit(lambda doc: doc.setdefault("gossip", {}).update(transfer_timeout_s=1234))
    for _ in range(2):
        assert await daemon.reload() == ("peers.yaml: gossip changed, which counts from the next start",)
        assert daemon.runtime.config.federation.gossip == before
    await daemon.transport.close()


async def test_another_list_is_refused(files: Federation, tmp_path: Path) -> None:
    """Its sites would be in force beside the words that site.yaml counts from the next start."""
    daemon = daemon_of(files)
    other = tmp_path / "other.yaml"
    other.write_text(daemon.config.federation_path.read_text())
    files["north"].edit(peers=str(other))
    with pytest.raises(ConfigError, match="another list of sites"):
        await daemon.reload()
    await daemon.transport.close()


async def test_a_site_can_be_taken_off_after_this_sites_certificate_has_expired(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_of(files)
    files.edit(without("west"))
    assert daemon.identity is not None
    expired_s = daemon.identity.not_after.timestamp() + 86400
    monkeypatch.setattr(time, "time", lambda: expired_s)
    with pytest.raises(LocalError, match="expired"):
        trust.Identity.load(daemon.identity.key_path, daemon.identity.certificate_path)
    assert await daemon.reload() == ("west removed",)
    assert daemon.runtime.intake.verifier.sites == {"north", "south"} and daemon.identity is not None
    await daemon.transport.close()


async def test_a_site_that_was_never_seen_is_shown_where_it_is_listed(files: Federation) -> None:
    daemon = daemon_of(files)
    daemon.runtime.node.step(events.Start(), 0.0)
    moved = [s["name"] for s in yaml.safe_load(files.peers_file.read_text())["sites"]].index("west")
    files.edit(lambda doc: doc["sites"][moved].update(address="127.0.0.1:9"))
    await daemon.reload()
    assert daemon.runtime.node.members["west"].address == "127.0.0.1:9"
    await daemon.transport.close()


async def test_a_changed_contract_is_refused_and_changes_nothing(files: Federation) -> None:
    daemon = daemon_of(files)
    before = daemon.trust
    files.edit(lambda doc: doc["network"].update(width=8))
    with pytest.raises(ConfigError, match="contract"):
        await daemon.reload()
    files.edit(without("north"))
    with pytest.raises(ConfigError, match="not in the list"):
        await daemon.reload()
    assert daemon.trust is daemon.runtime.intake.verifier is before
    assert [e["event"] for e in daemon.runtime.events.tail(2)] == ["config_refused"] * 2
    await daemon.transport.close()


async def test_files_are_read_beside_the_event_loop(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share that does not answer holds up the reload, and nothing else; two reloads take turns."""
    daemon, answers, asked = daemon_of(files), threading.Event(), asyncio.Event()
    loop, read, at_once = asyncio.get_running_loop(), daemon_main.load_config, []

    def slow(args: argparse.Namespace) -> Config:
        at_once.append(threading.get_ident())
        loop.call_soon_threadsafe(asked.set)
        assert answers.wait(30)
        return read(args)

    monkeypatch.setattr(daemon_main, "load_config", slow)
    first, second = (asyncio.create_task(daemon.reload()) for _ in range(2))
    await asked.wait()  # the loop turns
    assert len(at_once) == 1 and threading.get_ident() not in at_once
    answers.set()
    assert await first == await second == ()
    assert len(at_once) == 2
    await daemon.transport.close()


async def test_a_list_that_is_more_than_it_looks_changes_nothing(files: Federation) -> None:
    daemon = daemon_of(files)
    path = files.root / "peers.yaml"
    bomb = "x0: &x0 [a]\n" + "".join(f"x{i}: &x{i} [{f'*x{i - 1}, ' * 9}]\n" for i in range(1, 10))
    good = path.read_text()
    for text in (bomb, "x: &a [*a]\n", "x: " + "[" * 100_000):
        path.write_text(good + text)
        with pytest.raises(ConfigError, match=r"peers\.yaml"):
            await daemon.reload()
    path.write_text(good)
    assert await daemon.reload() == ()
    await daemon.transport.close()


# ---------------------------------------------------------------- keys


def list_for_north(f: Federation, *identities: trust.Identity) -> None:
    def change(doc: dict[str, Any]) -> None:
        me = next(s for s in doc["sites"] if s["name"] == "north")
        me["certificate"] = [i.certificate_pem.decode() for i in identities]

    f.edit(change)


def put_in_use(f: Federation, new: trust.Identity) -> None:
    folder = f["north"].folder / "identity"
    folder.joinpath(trust.KEY_FILE).write_bytes(new.key_pem)
    folder.joinpath(trust.CERTIFICATE_FILE).write_bytes(new.certificate_pem)


async def test_a_new_key_comes_into_use_without_a_restart(files: Federation) -> None:
    daemon = daemon_of(files)
    old, new = daemon.identity, trust.create_identity("north", files.root / "new")
    assert old is not None
    daemon.runtime.node.step(events.Start(), 0.0)
    incarnation, links = daemon.runtime.node.incarnation, links_of(daemon)
    list_for_north(files, old, new)
    assert await daemon.reload() == (f"north's key {trust.short_id(new.site_id)}… is accepted",)
    assert daemon.identity is old and links_of(daemon) == links, "nothing of it is in use yet"
    put_in_use(files, new)
    assert await daemon.reload() == (f"this site now uses the key {new.site_id}",)
    assert daemon.identity is not None and daemon.identity.site_id == new.site_id
    assert daemon.runtime.node.incarnation == incarnation + 1, "its record goes round again"
    own = daemon.runtime.node.own_record
    listed = trust.TrustList.from_sites({"north": [new.certificate_pem]})
    assert listed.verify("north", payload(own), own.signature), "signed with the new key"
    assert not set(links_of(daemon).values()) & set(links.values())
    list_for_north(files, new)
    assert await daemon.reload() == (f"north's key {trust.short_id(old.site_id)}… is no longer accepted",)
    assert await daemon.reload() == ()
    await daemon.transport.close()


@pytest.mark.parametrize("spoil", ["unlisted", "readable", "half", "expired", "junk"])
async def test_a_new_key_that_is_not_in_order_changes_nothing(files: Federation, spoil: str) -> None:
    daemon = daemon_of(files)
    before, links = daemon.identity, links_of(daemon)
    assert before is not None
    new = trust.create_identity("north", files.root / "new", days=30)
    folder = files["north"].folder / "identity"
    if spoil != "unlisted":
        list_for_north(files, before, new)
    put_in_use(files, new)
    if spoil == "readable":
        folder.joinpath(trust.KEY_FILE).chmod(0o640)
    elif spoil == "half":
        folder.joinpath(trust.CERTIFICATE_FILE).write_bytes(before.certificate_pem)
    elif spoil == "expired":
        key = serialization.load_pem_private_key(new.key_pem, None)
        ended = self_signed("north", key, -1, ())  # type: ignore[arg-type]
        folder.joinpath(trust.CERTIFICATE_FILE).write_bytes(ended.public_bytes(serialization.Encoding.PEM))
    elif spoil == "junk":
        folder.joinpath(trust.KEY_FILE).write_text("no key")
    with pytest.raises((ConfigError, LocalError)):
        await daemon.reload()
    assert daemon.identity is before and links_of(daemon) == links
    assert daemon.transport.identity is before
    assert daemon.runtime.events.tail(1)[0]["event"] == "config_refused"
    await daemon.transport.close()


async def test_what_counts_from_the_next_start_is_said(files: Federation) -> None:
    daemon = daemon_of(files)
    files.edit(lambda doc: doc["membership"].update(indirect_checks=1))
    files["north"].edit(rounds=3)
    said = "; ".join(await daemon.reload())
    assert "peers.yaml: membership changed, which counts from the next start" in said
    assert "site.yaml changed, which counts from the next start" in said
    await daemon.transport.close()


async def test_a_hangup_before_the_start_waits_for_it(files: Federation) -> None:
    daemon = daemon_of(files)
    daemon._hangup()
    assert daemon._hung_up and daemon.runtime.events.tail(9) == []
    await daemon.transport.close()


async def test_the_list_is_told_to_others_and_a_reload_changes_what_is_told(
    files: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_of(files)
    r = daemon.runtime
    r.inject(ev.Start())
    assert r.node.info.listed == listed(daemon.config) != ""
    fresh = trust.create_identity("south", tmp_path / "fresh").certificate_pem.decode()
    files.edit(lambda d: d["sites"][1].update(certificate=fresh))
    before, relisted = r.node.info.listed, list[Any]()
    monkeypatch.setattr(r.worker, "relist", relisted.append)
    await daemon.reload()
    assert r.node.info.listed != before
    assert relisted == [["north", "south", "west"]], "a worker that starts anew goes by it"
    await r.transport.close()
