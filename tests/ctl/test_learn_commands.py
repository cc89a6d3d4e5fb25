"""`gossipctl predict`, `evaluate`, `export`: subprocesses with the site's spec on their standard input."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossipseg.ctl import learn

PEERS = """\
federation: test
task: {name: lesions, channels: 1, labels: {0: background, 1: lesion}, patch_size: [32, 32]}
sites: [{name: north, address: "127.0.0.1:7443"}]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "peers.yaml").write_text(PEERS)
    text = "site: north\ndata: {path: data}\nlisten: 127.0.0.1:7443\ninsecure: true\ndevice: {device: cpu}\n"
    (tmp_path / "site.yaml").write_text(text)
    return tmp_path / "site.yaml"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """Another program in place of the learn module; returns what it was called with."""

    def replace(script: str) -> list[Any]:
        called: list[Any] = []

        def command_line(module: str, arguments: Any) -> list[str]:
            called.append((module, list(arguments)))
            return [sys.executable, "-c", textwrap.dedent(script)]

        monkeypatch.setattr(learn, "command_line", command_line)
        return called

    return replace


ECHO_SPEC = """
    import json, sys
    spec = json.load(sys.stdin)
    print("[ 50%] half", file=sys.stderr)
    print(json.dumps({"schema": 1, "kind": "k", "site": spec["site"], "round": 3, "files": ["a"], "outputs": [
        {"image": "i.png", "output": "o.png", "voxels": {"lesion": 7}}]}))
"""


def test_command_line_names_the_module() -> None:
    assert learn.command_line("predict", ["-o", "x"])[1:] == [
        *("-P", "-m", "gossipseg.ends", "gossipseg.learn.commands.predict", "--spec", "-", "-o", "x"),
    ]


def test_spec_goes_in_progress_and_document_come_out(ctl: Any, site: Path, stand_in: Any) -> None:
    called = stand_in(ECHO_SPEC)
    result = ctl("predict", "-o", "out", "--config", site, "i.png", "j.png")
    assert called == [("predict", ["-o", "out", "--", "i.png", "j.png"])]
    assert (result.code, result.err) == (0, "[ 50%] half\n")
    assert result.lines == ["i.png -> o.png: 7 voxels lesion", "with the model of round 3"]
    result = ctl("predict", "i.png", "-o", "out", "--config", site, "--json")
    assert result.json["site"] == "north"
    assert ctl("export", "-o", "out", "--config", site).lines == ["a", "the model of north after round 3"]
    ctl("export", "-o", "out", "--single", "--config", site)
    assert called[-1] == ("export", ["-o", "out", "--single"])


def test_predict_passes_the_format_and_shows_the_note(ctl: Any, site: Path, stand_in: Any) -> None:
    noted = ECHO_SPEC.replace('"voxels"', '"note": "DICOM; written as NIfTI", "voxels"')
    called = stand_in(noted)
    result = ctl("predict", "-o", "out", "--config", site, "--format", "dicom-seg", "i")
    assert called == [("predict", ["-o", "out", "--format", "dicom-seg", "--", "i"])]
    assert result.lines[:2] == ["i.png -> o.png: 7 voxels lesion", "  DICOM; written as NIfTI"]
    result = ctl("predict", "-o", "out", "--config", site, "--format", "jpeg", "i")
    assert result.code == 78 and "--format = 'jpeg'" in result.err and len(called) == 1


def test_evaluate_passes_its_options(ctl: Any, site: Path, stand_in: Any, tmp_path: Path) -> None:
    called = stand_in("print('table')")
    assert ctl("evaluate", "--config", site).out == "table\n"
    ctl("evaluate", "--split", "validation", "--csv", "x.csv", "--json", "--config", site)
    ctl("evaluate", "--tolerance", "1.5", "--config", site)
    assert called == [
        ("evaluate", ["--split", "test"]),
        ("evaluate", ["--split", "validation", "--json", "-", "--csv", "x.csv"]),
        ("evaluate", ["--split", "test", "--tolerance", "1.5"]),
    ]
    result = ctl("evaluate", "--split", "tset", "--config", site)
    assert result.code == 78 and "--split = 'tset'" in result.err


@pytest.mark.parametrize("code", [1, 65, 78])
def test_exit_codes_and_errors_pass_through(ctl: Any, site: Path, stand_in: Any, code: int) -> None:
    stand_in(
        f"import sys; sys.stdin.read(); print('error: bad. Mend it.', file=sys.stderr); sys.exit({code})"
    )
    result = ctl("export", "-o", "out", "--config", site)
    assert (result.code, result.out, result.err) == (code, "", "gossipctl: bad. Mend it.\n")
    document = ctl("export", "-o", "out", "--config", site, "--json").json
    assert (document["kind"], document["message"], document["exit_code"]) == ("error", "bad. Mend it.", code)


def test_a_part_of_the_work_is_shown_though_some_failed(ctl: Any, site: Path, stand_in: Any) -> None:
    stand_in(ECHO_SPEC + "    print('error: j.png is broken.', file=sys.stderr); sys.exit(65)")
    result = ctl("predict", "i.png", "j.png", "-o", "out", "--config", site)
    assert result.code == 65
    assert "i.png -> o.png" in result.out and "j.png is broken" in result.err


def test_a_killed_process_is_reported_as_by_a_shell(ctl: Any, site: Path, stand_in: Any) -> None:
    stand_in("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    result = ctl("export", "-o", "out", "--config", site)
    assert result.code == 128 + signal.SIGKILL
    assert "ended with exit code 137" in result.err


@pytest.mark.slow
def test_without_a_checkpoint_the_real_module_says_so(ctl: Any, site: Path, tmp_path: Path) -> None:
    result = ctl("export", "-o", tmp_path / "out", "--config", site, "--json")
    assert result.code in (1, 65, 78)
    assert json.loads(result.out)["kind"] == "error" and "checkpoint" in result.err
    assert not (tmp_path / "out").exists()
