"""`gossipctl audit`, on a log in a state directory; no daemon runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gossipseg.store.auditlog import AuditLog


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site" / "state" / "audit"
    log = AuditLog(folder)
    merged = {"peer": "south", "hash": "ab" * 32, "kind": "model", "round": 3}
    log.append([(1.0, "daemon_started", {}), (2e9, "model_merged", {**merged, "dice_before": 0.4})])
    log.append([(2e9 + 1, "model_refused", {"peer": "west", "hash": "cd" * 32, "reason": "not_finite"})])
    log.close()
    config = tmp_path / "site" / "site.yaml"
    config.write_text("site: north\ndata: {path: data}\n")
    return config


def test_verify(ctl: Any, site: Path) -> None:
    shown = ctl("audit", "verify", "--config", site)
    assert shown.code == 0 and "the chain holds" in shown.out
    verdict = ctl("audit", "verify", "--config", site, "--json").json
    assert (verdict["ok"], verdict["lines"], verdict["schema"], verdict["kind"]) == (
        True,
        3,
        1,
        "audit_verify",
    )
    head = f"{verdict['last_seq']}:{verdict['last_hash']}"
    assert ctl("audit", "verify", "--config", site, "--head", head).code == 0
    assert ctl("audit", "verify", "--config", site, "--head", f"2:{'0' * 64}").code == 1
    assert ctl("audit", "verify", "--config", site, "--head", "2").code == 78
    path = site.parent / "state" / "audit" / "audit.jsonl"
    path.write_text(path.read_text().replace("0.4", "0.9"))
    bad = ctl("audit", "verify", "--directory", path.parent)
    assert bad.code == 1 and "audit.jsonl line 3 (number 3)" in bad.out and "TAMPERED" in bad.out
    assert (
        ctl("audit", "verify", "--directory", path.parent, "--json").json["flaws"][0]["reason"] == "changed"
    )


def test_show(ctl: Any, site: Path) -> None:
    lines = ctl("audit", "show", "--config", site).lines
    assert len(lines) == 4 and lines[0].split()[:3] == ["SEQ", "TIME", "WHAT"]
    assert "model_merged" in lines[2] and "0.4" in lines[2] and "abababababab" in lines[2]
    assert [
        r["event"] for r in ctl("audit", "show", "--config", site, "--peer", "west", "--json").json["lines"]
    ] == ["model_refused"]
    assert len(ctl("audit", "show", "--config", site, "--since", "2020-01-01", "--json").json["lines"]) == 2
    assert len(ctl("audit", "show", "--config", site, "--since", "12h", "-n", 1, "--json").json["lines"]) == 1
    assert ctl("audit", "show", "--config", site, "--since", "yesterday").code == 78
    assert "no such line" in ctl("audit", "show", "--config", site, "--peer", "nobody").out


def test_show_goes_on_past_lines_that_were_tampered_with(ctl: Any, site: Path) -> None:
    path = site.parent / "state" / "audit" / "audit.jsonl"
    with path.open("a") as f:
        for t, dice in [('"soon"', '"good"'), ("1e300", "[]"), ("9e14", "true"), ("null", "{}")]:
            f.write(f'{{"seq":4,"t":{t},"event":"model_merged","round":{{}},"dice_before":{dice}}}\n')
    shown = ctl("audit", "show", "--config", site)
    assert shown.code == 0 and len(shown.lines) == 8
    assert ctl("audit", "verify", "--config", site).code == 1


def test_a_mistyped_folder_is_no_log_that_holds(ctl: Any, site: Path) -> None:
    for command in ("verify", "show"):
        bad = ctl("audit", command, "--directory", site.parent / "sttae")
        assert bad.code == 78 and "--directory" in bad.err
