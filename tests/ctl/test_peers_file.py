"""`gossipctl peers add` and `remove`: the list changes, everything else in peers.yaml stays."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from gossipseg import config, trust

HEAD = """\
# our federation
federation: test   # its name
task: {name: t, channels: 1, labels: {0: background, 1: organ}}
"""
INDENTED = """\
sites:
  # the first one
  - name: a
    address: a.example:1   # moves next year

  # contact: B
  - name: b
    address: b.example:2
    # no certificate yet
"""
FLUSH = """\
sites:
- address: a.example:1
  name: a
- {name: b, address: "b.example:2"}
seed: 7  # after the list
"""
ODD = """\
training:
    steps_per_round: 10
network: { name: unet,  width: 8 }
sites:
    - name:    a
      address: 'a.example:1'
    - "name":  b
      "address": "\\x62.example:2"
seed: 7
"""
LAYOUTS = {
    "indented": HEAD + INDENTED,
    "flush, and a key behind it": HEAD + FLUSH,
    "the list comes first": INDENTED + "\n" + HEAD,
    "dash on its own line": HEAD
    + "sites:\n  -\n    name: a\n    address: a.example:1\n  - name: b\n    address: b.x:2\n",
    "no line end at the end": (HEAD + INDENTED).rstrip(),
    "lines of Windows": (HEAD + INDENTED).replace("\n", "\r\n"),
    "a comment behind the list": HEAD + INDENTED + "\n# the end\n",
    "aligned values, escapes, other indents, blanks": HEAD + ODD.replace("sites:", "sites:  "),
    "a document's mark": "---\n" + HEAD + INDENTED,
    "a byte order mark": "\ufeff" + HEAD + INDENTED,
}
EMPTY = {
    "no key": HEAD,
    "nothing": HEAD + "sites:\n",
    "brackets": HEAD + "sites: []  # nobody yet\nseed: 7\n",
    "comments": HEAD + "sites:\n  # - name: later\n\nseed: 7\n",
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trust.create_identity("new", tmp_path_factory.mktemp("new")).certificate_path


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    return tmp_path / "peers.yaml"


def add(ctl: Any, peers: Path, certificate: Path, *more: str) -> Any:
    return ctl(
        *("peers", "add", peers, "--name", "new", "--address", "[::1]:7443", "--certificate", certificate),
        *more,
    )


def names(peers: Path) -> list[str]:
    return [s.name for s in config.load_federation(peers).sites]


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_add_then_remove_restores_the_file(ctl: Any, peers: Path, certificate: Path, text: str) -> None:
    peers.write_bytes(text.encode())
    result = add(ctl, peers, certificate)
    assert result.code == 0, result.err
    assert names(peers) == ["a", "b", "new"]
    added = config.load_federation(peers).sites[2]
    assert (added.address, added.certificate) == ("[::1]:7443", [certificate.read_text()])
    now = peers.read_bytes().decode()
    assert [line for line in text.splitlines() if line not in now.splitlines()] == [], "nothing is lost"
    assert now.count("\r\n") == (now.count("\n") if "\r\n" in text else 0)
    assert ctl("peers", "remove", "--name", "new", peers).code == 0
    assert peers.read_bytes().decode().rstrip() == text.rstrip()


@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY.keys())
def test_add_the_first_site(ctl: Any, peers: Path, certificate: Path, text: str) -> None:
    peers.write_text(text)
    assert add(ctl, peers, certificate).code == 0
    assert names(peers) == ["new"]
    for comment in ("# our federation", "# its name", "# nobody yet", "# - name: later"):
        assert (comment in text) == (comment in peers.read_text())
    assert ctl("peers", "remove", "--name", "new", peers).code == 0
    assert names(peers) == []


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("gone", ["a", "b"])
def test_remove(ctl: Any, peers: Path, text: str, gone: str) -> None:
    peers.write_bytes(text.encode())
    before = config.load_federation(peers)
    result = ctl("peers", "remove", "--name", gone, peers, "--json")
    assert (result.code, result.json["kind"]) == (0, "peer_removed")
    after = config.load_federation(peers)
    assert [s.name for s in after.sites] == [s for s in ("a", "b") if s != gone]
    assert (after.task, after.seed) == (before.task, before.seed)
    left = peers.read_text()
    assert "# its name" in left
    assert ("# contact: B" in left) == ("# contact: B" in text and gone == "a"), "goes with its entry"


def test_id_is_written_and_checked(ctl: Any, peers: Path, certificate: Path) -> None:
    peers.write_text(HEAD + INDENTED)
    before = peers.read_bytes()
    site_id = trust.site_id(certificate.read_bytes())
    wrong = site_id[:-1] + ("A" if site_id[-1] != "A" else "B")  # its last is a check character
    result = add(ctl, peers, certificate, "--id", wrong)
    assert result.code == 78 and "check character" in result.err
    assert peers.read_bytes() == before
    result = add(ctl, peers, certificate, "--id", site_id, "--json")
    assert result.json == {
        "schema": 1,
        "kind": "peer_added",
        "site": "new",
        "id": site_id,
        "file": str(peers),
    }
    assert config.load_federation(peers).sites[2].id == site_id


def test_what_is_refused_changes_nothing(ctl: Any, peers: Path, certificate: Path, tmp_path: Path) -> None:
    peers.write_text(HEAD + INDENTED)
    before = peers.read_bytes()
    key, text = certificate.with_name("key.pem"), tmp_path / "text.pem"
    text.write_text("hello")
    refusals = {
        "this site is listed already": ("--name", "a"),
        "has no port": ("--address", "new.example"),
        "two sites have this address": ("--address", "a.example:1"),
        "is not a valid name": ("--name", "New"),
        "private key": ("--certificate", key),
        "cannot be read": ("--certificate", tmp_path / "none.pem"),
        "text.pem": ("--certificate", text),
    }
    for words, (option, value) in refusals.items():
        options = {"--name": "new", "--address": "n.example:1", "--certificate": certificate, option: value}
        result = ctl("peers", "add", peers, *[x for pair in options.items() for x in pair])
        assert result.code == 78, words
        assert words in result.err, result.err
        assert peers.read_bytes() == before
    result = ctl("peers", "remove", "--name", "nobody", peers)
    assert result.code == 78 and "Listed: a, b" in result.err
    assert peers.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["peers.yaml", "text.pem"], "no temporary is left"


def test_a_file_with_a_mistake_is_not_edited(ctl: Any, peers: Path, certificate: Path) -> None:
    peers.write_text(HEAD + "sede: 3\n" + INDENTED)
    assert "Did you mean `seed`?" in add(ctl, peers, certificate).err
    peers.write_text(HEAD + 'sites: [{name: a, address: "a:1"}]\n')
    before = peers.read_bytes()
    result = add(ctl, peers, certificate)
    assert result.code == 78 and "in brackets" in result.err
    assert peers.read_bytes() == before
    assert ctl("peers", "add", peers.with_name("none.yaml"), *add_options(certificate)).code == 78


def add_options(certificate: Path) -> list[object]:
    return ["--name", "new", "--address", "n:1", "--certificate", certificate]


def test_mode_and_links_stay(ctl: Any, peers: Path, certificate: Path, tmp_path: Path) -> None:
    real = tmp_path / "repository" / "list.yaml"
    real.parent.mkdir()
    real.write_text(HEAD + INDENTED)
    real.chmod(0o640)
    peers.symlink_to(real)
    assert add(ctl, peers, certificate).code == 0
    assert peers.is_symlink() and names(real) == ["a", "b", "new"]
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_file_is_found_by_site_yaml_or_here(
    ctl: Any, peers: Path, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers.write_text(HEAD)
    (tmp_path / "site.yaml").write_text("site: a\ndata: {path: x}\npeers: peers.yaml\n")
    monkeypatch.chdir("/")
    options = ["--name", "new", "--address", "n.example:1", "--certificate", certificate]
    assert ctl("peers", "add", *options, "--config", tmp_path / "site.yaml").code == 0
    (tmp_path / "site.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    assert ctl("peers", "remove", "--name", "new").code == 0, "./peers.yaml"
    peers.unlink()
    assert ctl("peers", "remove", "--name", "new").code == 78
