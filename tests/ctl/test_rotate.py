"""`gossipctl rotate` and `peers certify`: another key, step by step. The other site is a real TLS server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gossipseg import config as configuration
from gossipseg import trust
from gossipseg.core.messages import Reply, Request
from gossipseg.core.types import ModelRef
from gossipseg.errors import EXIT_CONFIG, EXIT_FAILED, PeerRefused
from gossipseg.store.lock import DirectoryLock
from gossipseg.trust.making import self_signed
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.transport import PeerEndpoint

TASK = {"name": "t", "channels": 1, "labels": {0: "background", 1: "organ"}, "patch_size": [32, 32]}


class Silent:
    """Answers nothing: the handshake is all that is asked for."""

    async def on_request(self, peer: str, body: Request) -> Reply:
        raise PeerRefused(peer, "busy")

    async def push_offset(self, peer: str, model: ModelRef) -> int:
        raise PeerRefused(peer, "busy")

    async def on_push(self, peer: str, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        raise PeerRefused(peer, "busy")


@dataclass
class Two:
    """North, whose key is replaced, and south, which listens."""

    folder: Path
    north: trust.Identity
    south: GrpcTransport
    loop: asyncio.AbstractEventLoop

    @property
    def site(self) -> Path:
        return self.folder / "north" / "site.yaml"

    @property
    def peers(self) -> Path:
        return self.folder / "peers.yaml"

    @property
    def pair(self) -> tuple[Path, Path]:
        return trust.next_paths(self.north.key_path, self.north.certificate_path)

    def south_reloads(self) -> None:
        listed = next(s for s in configuration.load_federation(self.peers).sites if s.name == "north")
        certificates = tuple(text.encode() for text in trust.certificates_of(listed))
        done = asyncio.run_coroutine_threadsafe(self._set(certificates), self.loop)
        done.result(10)

    async def _set(self, certificates: tuple[bytes, ...]) -> None:
        self.south.set_peers({"north": PeerEndpoint("north", "127.0.0.1:1", certificates)})


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    north = trust.create_identity("north", tmp_path / "north" / "identity")
    south = trust.create_identity("south", tmp_path / "south")

    async def serve() -> GrpcTransport:
        made = GrpcTransport("south", listen="127.0.0.1:0", identity=south, peers={})
        await made.start(Silent())
        return made

    transport = asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
    document = {
        "federation": "test",
        "task": TASK,
        "sites": [
            {"name": "north", "address": "127.0.0.1:1", "id": north.site_id,
             "certificate": north.certificate_pem.decode()},
            {"name": "south", "address": transport.address, "certificate": south.certificate_pem.decode()},
        ],
    }  # fmt: skip
    (tmp_path / "peers.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    site = {"site": "north", "peers": "../peers.yaml", "data": {"path": "data"}}
    made = Two(tmp_path, north, transport, loop)
    made.site.write_text(yaml.safe_dump(site))
    made.south_reloads()
    yield made
    asyncio.run_coroutine_threadsafe(transport.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_a_whole_rotation(ctl: Any, two: Two) -> None:
    begun = ctl("rotate", "--config", two.site)
    key, certificate = two.pair
    made = trust.Identity.load(key, certificate)
    assert begun.code == 0 and made.site_id in begun.out and key.stat().st_mode & 0o777 == 0o600
    assert "gossipctl peers certify" in begun.out and "PRIVATE" not in begun.out
    printed = begun.out[begun.out.index("    certificate:\n") :].split("\n\n")[0]
    texts = [two.north.certificate_pem.decode(), made.certificate_pem.decode()]
    assert yaml.safe_load(printed + "\n") == {"certificate": texts}, "what is printed can be pasted"
    again = ctl("rotate", "--config", two.site, "--json")
    assert again.json["next_id"] == made.site_id and again.json["state"] == "begun", "not made twice"

    early = ctl("rotate", "--finish", "--config", two.site)
    assert early.code == 78 and "listed with another key" in early.err, "not even this site lists it"
    assert ctl("peers", "certify", two.peers, "--name", "north", "--certificate", certificate).code == 0
    assert ctl("rotate", "--config", two.site, "--json").json["state"] == "listed"
    early = ctl("rotate", "--finish", "--config", two.site)
    assert early.code == 1 and "south: " in early.err and "does not accept the next key" in early.err
    assert trust.Identity.load(two.north.key_path, two.north.certificate_path) and key.exists()

    two.south_reloads()
    finished = ctl("rotate", "--finish", "--config", two.site)
    assert finished.code == 0 and "--only" in finished.out and "next start" in finished.out
    now = trust.Identity.load(two.north.key_path, two.north.certificate_path)
    assert now.site_id == made.site_id and now.key_path.stat().st_mode & 0o777 == 0o600
    assert not key.exists() and not certificate.exists()
    last = ctl("peers", "certify", two.peers, "--name", "north", "--only", "--certificate",
               now.certificate_path)  # fmt: skip
    assert last.code == 0
    north = configuration.load_federation(two.peers).sites[0]
    assert north.certificate == [now.certificate_pem.decode()] and north.id == now.site_id
    assert ctl("rotate", "--finish", "--config", two.site).code == 1, "there is no next key any more"


def test_a_daemon_that_does_not_answer_may_go_on_with_the_old_key(ctl: Any, two: Two) -> None:
    """Nobody is told to take the old key off the list before it is known."""
    ctl("rotate", "--config", two.site)
    ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1])
    state = Path(configuration.load(two.site).site.state_dir)
    state.mkdir(exist_ok=True)
    with DirectoryLock(state / "daemon.lock"):
        done = ctl("rotate", "--finish", "--force", "--config", two.site, "--json")
    assert done.code == EXIT_FAILED and done.json["state"] == "not_in_use"
    assert done.json["daemon"].startswith("Whether the daemon uses it is not known")


def test_a_site_that_cannot_be_asked_holds_the_rotation_up_unless_forced(ctl: Any, two: Two) -> None:
    ctl("rotate", "--config", two.site)
    ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1])
    text = two.peers.read_text().replace(two.south.address, "127.0.0.1:2")
    two.peers.write_text(text)
    held = ctl("rotate", "--finish", "--config", two.site)
    assert held.code == 1 and "127.0.0.1:2 cannot be asked" in held.err and two.pair[0].exists()
    forced = ctl("rotate", "--finish", "--force", "--config", two.site, "--json")
    assert forced.code == 0 and list(forced.json["unready"]) == ["south"]


def test_a_finish_that_was_broken_off_between_the_two_files_is_taken_up(
    ctl: Any, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossipseg.ctl import rotate

    ctl("rotate", "--config", two.site)
    ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1])
    two.south_reloads()
    made, real = trust.Identity.load(*two.pair), rotate._put_in_use

    def once(source: Path, target: Path, mode: int) -> None:
        real(source, target, mode)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rotate, "_put_in_use", once)
        assert ctl("rotate", "--finish", "--config", two.site).code == 130
    assert ctl("rotate", "--finish", "--config", two.site).code == 0
    assert trust.Identity.load(two.north.key_path, two.north.certificate_path).site_id == made.site_id


def test_after_a_crash_at_any_step_of_a_finish_the_site_starts_and_the_finish_can_be_repeated(
    ctl: Any, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off before the 1st, 2nd … change of a file: the pair is usable each time."""
    steps = [(os, "replace"), (Path, "unlink")]
    real = {name: getattr(owner, name) for owner, name in steps}
    ctl("rotate", "--config", two.site)
    ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1])
    two.south_reloads()
    made = trust.Identity.load(*two.pair)
    pairs = [*two.pair, two.north.key_path, two.north.certificate_path]
    before = {path: path.read_bytes() for path in pairs}
    for last in range(4):
        for path, content in before.items():
            path.write_bytes(content)
            path.chmod(0o600)
        done = 0

        def step(name: str, last: int = last) -> Any:
            def change(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                if name == "replace" or not str(args[0]).endswith(".tmp"):
                    if done >= last:
                        raise KeyboardInterrupt
                    done += 1
                return real[name](*args, **kwargs)

            return change

        with monkeypatch.context() as patched:
            for owner, name in steps:
                patched.setattr(owner, name, step(name))
            assert ctl("rotate", "--finish", "--config", two.site).code == 130
        now = trust.Identity.load(two.north.key_path, two.north.certificate_path)
        assert now.site_id == (two.north if last == 0 else made).site_id
        begun = ctl("rotate", "--config", two.site, "--json") if last < 3 else None
        assert begun is None or begun.json["next_id"] == made.site_id, "not begun anew"
        finished = ctl("rotate", "--finish", "--config", two.site, "--json")
        assert finished.code == 0 and finished.json["next_id"] == made.site_id, (last, finished.err)
        assert not any(path.exists() for path in two.pair)
        assert two.north.certificate_path.read_bytes() == made.certificate_pem


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask_and_links_stay(ctl: Any, two: Two, umask: int) -> None:
    vault = two.folder / "vault"
    vault.mkdir(mode=0o700)
    two.north.key_path.rename(vault / "north.pem")
    two.north.key_path.symlink_to(vault / "north.pem")
    before = os.umask(umask)
    try:
        ctl("rotate", "--config", two.site)
        modes = [path.stat().st_mode & 0o777 for path in two.pair]
        ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1])
        two.south_reloads()
        assert ctl("rotate", "--finish", "--config", two.site).code == 0
    finally:
        os.umask(before)
    assert modes == [0o600, 0o644]
    assert two.north.key_path.is_symlink() and (vault / "north.pem").stat().st_mode & 0o777 == 0o600
    assert two.north.certificate_path.stat().st_mode & 0o777 == 0o644, "the daemon's user must read it"
    assert trust.Identity.load(two.north.key_path, two.north.certificate_path).site_id != two.north.site_id


def test_half_a_next_certificate_is_named_with_what_to_do(ctl: Any, two: Two) -> None:
    ctl("rotate", "--config", two.site)
    two.pair[1].write_bytes(two.pair[1].read_bytes()[:200])
    for flags in ((), ("--finish",)):
        said = ctl("rotate", *flags, "--config", two.site)
        assert said.code == 78 and f"remove {two.pair[0]} and {two.pair[1]}" in said.err


def test_a_third_certificate_does_not_push_out_the_one_in_use(ctl: Any, two: Two) -> None:
    """A rotation was given up after its certificate was listed, and another begun."""
    ctl("rotate", "--config", two.site)
    ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1])
    for path in two.pair:
        path.unlink()
    ctl("rotate", "--config", two.site)
    said = ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1])
    assert said.code == 78 and "--only" in said.err
    listed = trust.certificates_of(configuration.load_federation(two.peers).sites[0])
    assert two.north.certificate_pem.decode() in listed
    only = ("peers", "certify", two.peers, "--name", "north", "--only", "--certificate")
    assert ctl(*only, two.north.certificate_path).code == 0
    assert ctl("peers", "certify", two.peers, "--name", "north", "--certificate", two.pair[1]).code == 0


def test_an_expired_site_can_begin_too(ctl: Any, two: Two, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(two.north.key_pem, None)
    ended = self_signed("north", key, -1, ())  # type: ignore[arg-type]
    two.north.certificate_path.write_bytes(ended.public_bytes(serialization.Encoding.PEM))
    assert ctl("rotate", "--config", two.site).code == 0


@pytest.mark.parametrize("more", [(), ("--only",)])
def test_an_expired_certificate_is_not_listed(ctl: Any, two: Two, more: tuple[str, ...]) -> None:
    """In the place of the present one it would take the site out of the federation."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(two.north.key_pem, None)
    ended = two.folder / "ended.pem"
    made = self_signed("north", key, -1, ())  # type: ignore[arg-type]
    ended.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    before = two.peers.read_bytes()
    found = ctl("peers", "certify", two.peers, "--name", "north", "--certificate", ended, *more)
    assert found.code == EXIT_CONFIG and "expired on" in found.err
    assert two.peers.read_bytes() == before


def test_the_next_certificate_carries_the_names_of_the_present_one(tmp_path: Path) -> None:
    made = trust.create_identity("gpu3.hospital.example", tmp_path, hosts=["192.0.2.7"])
    following = trust.create_next("north", made)
    assert trust.name_in_certificates("north", [made.certificate_pem, following.certificate_pem])


def test_without_keys_there_is_nothing_to_rotate(ctl: Any, two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSIPSEG_INSECURE", "true")
    monkeypatch.setenv("GOSSIPSEG_LISTEN", "127.0.0.1:0")
    assert "has no key" in ctl("rotate", "--config", two.site).err


# ---------------------------------------------------------------- the list


@pytest.mark.parametrize(
    "entry",
    [
        "  - name: north\n    # theirs\n    certificate: north.pem\n    # the address\n    address: a:1\n",
        "  - certificate:\n      - north.pem\n    name: north\n    address: a:1\n",
        "  - address: a:1\n    name: north\n",
        "  -\n    name: north\n    address: a:1\n    certificate: north.pem\n",
    ],
)
def test_certificates_are_replaced_and_the_rest_stays(ctl: Any, tmp_path: Path, entry: str) -> None:
    first = trust.create_identity("north", tmp_path / "1")
    second = trust.create_identity("north", tmp_path / "2")
    (tmp_path / "north.pem").write_bytes(first.certificate_pem)
    peers = tmp_path / "peers.yaml"
    head, tail = (
        f"federation: test\ntask: {TASK}\n# who\nsites:\n",
        "  # the other\n  - {name: b, address: 'b:1'}\n",
    )
    peers.write_text(head + entry + tail)
    done = ctl(
        "peers", "certify", peers, "--name", "north", "--certificate", second.certificate_path, "--json"
    )
    assert done.code == 0, done.err
    text, sites = peers.read_text(), configuration.load_federation(peers).sites
    assert text.startswith(head) and text.endswith(tail) and "address: a:1" in text
    assert ("# theirs" in text and "# the address" in text) == ("# theirs" in entry)
    listed = [trust.site_id(c.encode()) for c in trust.certificates_of(sites[0])]
    assert listed == ([first.site_id] if "north.pem" in entry else []) + [second.site_id] == done.json["ids"]
    assert ctl("peers", "certify", peers, "--name", "x", "--certificate", second.certificate_path).code == 78
