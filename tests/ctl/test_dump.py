"""`gossipctl dump` writes what the daemon recorded, once, for its owner alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossipseg.wire import documents as doc


def test_dump(daemon: Any, ctl: Any, tmp_path: Path) -> None:
    async def dump() -> doc.DumpDoc:
        return document

    daemon.answers.dump = dump
    document, file = doc.DumpDoc("head\nstep\n", 1), tmp_path / "d.jsonl"
    shown = ctl("dump", "--out", file, "--socket", daemon.socket, "--json")
    assert shown.json == {"schema": 1, "kind": "dump", "file": str(file), "steps": 1, "bytes": 10}
    assert file.read_text() == document.recording and file.stat().st_mode & 0o777 == 0o600
    again = ctl("dump", "--out", file, "--socket", daemon.socket)
    assert again.code != 0 and "cannot be written" in again.err
    document = doc.DumpDoc("", 0, "the core cannot be recorded")
    empty = ctl("dump", "--out", tmp_path / "e", "--socket", daemon.socket)
    assert empty.code != 0 and "cannot be recorded" in empty.err and not (tmp_path / "e").exists()
