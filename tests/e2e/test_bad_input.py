"""What a daemon says and how it exits when its files, its data or its machine are wrong: at start-up."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gossipseg import errors
from tests.e2e.federation import Federation, federation

pytestmark = pytest.mark.e2e


def run(f: Federation, *flags: str, timeout_s: float = 180.0) -> tuple[int, str]:
    """Run north's daemon until it ends by itself."""
    command = [sys.executable, "-m", "gossipseg.daemon.main", "--config", str(f["north"].config), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def test_unknown_key(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        f["north"].edit(stat_dir="elsewhere")
        code, text = run(f)
        assert code == errors.EXIT_CONFIG
        assert "site.yaml" in text and "stat_dir" in text and "state_dir" in text


def test_occupied_port(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f, socket.socket() as s:
        s.bind(("127.0.0.1", int(f["north"].address.rsplit(":", 1)[1])))
        s.listen()
        code, text = run(f)
        assert code == errors.EXIT_FAILED
        assert f["north"].address in text and "listen" in text


def test_second_daemon_on_one_state_directory(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        f["north"].start()
        f.until("it runs", lambda: f["north"].status() is not None)
        code, text = run(f)
        assert code == errors.EXIT_TEMPFAIL
        assert str(f["north"].pid) in text


def test_id_that_does_not_match_the_certificate(tmp_path: Path) -> None:
    with federation(tmp_path, ["north", "south"]) as f:
        from gossipseg import trust

        def swap(doc: dict[str, Any]) -> None:
            doc["sites"][0]["id"] = trust.site_id(doc["sites"][1]["certificate"].encode())

        f.edit(swap)
        code, text = run(f)
        assert code == errors.EXIT_CONFIG
        assert "peers.yaml" in text and "sites.0.id" in text


def test_this_sites_key_is_not_the_listed_one(tmp_path: Path) -> None:
    with federation(tmp_path, ["north", "south"]) as f:
        f["north"].edit(
            identity={"key": "../south/identity/key.pem", "certificate": "../south/identity/cert.pem"}
        )
        code, text = run(f)
        assert code == errors.EXIT_CONFIG
        assert "peers.yaml" in text and "another key" in text


def test_readable_key(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        (f["north"].folder / "identity" / "key.pem").chmod(0o644)
        code, text = run(f)
        assert code == errors.EXIT_FAILED
        assert "key.pem" in text and "chmod" in text


def test_insecure_beyond_loopback(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        f["north"].edit(insecure=True, listen="0.0.0.0:7443")
        code, text = run(f)
        assert code == errors.EXIT_CONFIG
        assert "listen" in text and "loopback" in text


@pytest.mark.parametrize("what", ["missing", "unreadable", "label", "shape", "rgb", "empty"])
def test_bad_data_ends_the_daemon_at_start(tmp_path: Path, what: str) -> None:
    with federation(tmp_path, ["north"]) as f:
        data = f["north"].folder / "data"
        listed = json.loads((data / "dataset.json").read_text())
        first = listed["training"][0]
        image, label = data / first["image"], data / first["label"]
        match what:
            case "missing":
                image.unlink()
            case "unreadable":
                image.write_bytes(b"not a picture")
            case "label":
                Image.new("L", (48, 48), 7).save(label)
            case "shape":
                Image.new("L", (40, 48)).save(label)
            case "rgb":
                Image.new("RGB", (48, 48), (200, 90, 30)).save(image)
            case "empty":
                (data / "dataset.json").write_text(json.dumps({**listed, "training": []}))
        code, text = run(f)
        assert code == errors.EXIT_DATA, text
        assert (Path(first["image"]).name in text) or what == "empty"
        expected = {"label": "7", "shape": "40", "rgb": "channel", "empty": "training"}.get(what, image.name)
        assert expected in text
