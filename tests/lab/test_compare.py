"""gossiplab as a user runs it: real worker processes, files, an interruption, the report."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gossipseg.lab import main
from tests.lab import rig

DEADLINE_S = 240.0
ALGORITHMS = "local,gcml[gossip.sender_rate=1],fedavg"
NUMBER, TEXT, COUNT = {"type": ["number", "null"]}, {"type": "string"}, {"type": "integer", "minimum": 0}
SHARE, POSITIVE = {**NUMBER, "minimum": 0, "maximum": 1}, {**NUMBER, "minimum": 0}
ROW = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("algorithm", "site", "run"), TEXT),
        **dict.fromkeys(("dice_test", "dice_val", "dice_val_tail"), SHARE),
        **dict.fromkeys(("hd95", "seconds"), POSITIVE),
        **dict.fromkeys(
            ("seed", "split", "bytes_out", "bytes_in", "rounds", "sent", "merged", "gradient_evaluations"),
            COUNT,
        ),
        "cases": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "dice"],
                "properties": {"id": TEXT, "dice": NUMBER},
            },
        },
        "curve": {"type": "array", "items": {"type": "array", "prefixItems": [COUNT, NUMBER]}},
    },
}
ROW["required"] = list(ROW["properties"])  # type: ignore[call-overload]
SCHEMA = {
    "type": "object",
    "required": ["schema", "runs", "settings", "command", "versions", "summary", "algorithms", "sites"],
    "properties": {"schema": {"const": 1}, "runs": {"type": "array", "minItems": 1, "items": ROW}},
}


def arguments(data: Path, out: Path, algorithms: str = ALGORITHMS, *more: str) -> list[str]:
    settings = [part for text in rig.TINY for part in ("--set", text)]
    return [
        "compare", "--data", str(data), "--sites", "lakeside,north", "--algorithms", algorithms,
        "--rounds", "2", "--steps", "2", "--seeds", "0", "--out", str(out), *settings, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compared(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that has come to its end."""
    out = tmp_path_factory.mktemp("compared") / "out"
    assert main.run(arguments(hospitals, out)) == 0
    return out


def read(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "results.json").read_text())
    return document


def test_results_hold_a_row_for_each_run_and_site(compared: Path) -> None:
    document = read(compared)
    jsonschema.validate(document, SCHEMA)
    names = ["local", "gcml[gossip.sender_rate=1]", "fedavg"]
    assert [(r["algorithm"], r["site"]) for r in document["runs"]] == [
        (name, site) for name in names for site in ("lakeside", "north")
    ]
    assert [s["algorithm"] for s in document["summary"]] == names
    assert document["failed"] == {}
    assert [(c["algorithm"], c["reference"]) for c in document["claims"]] == [
        (names[1], "local"), ("fedavg", "local"), (names[1], "fedavg"),
    ]  # fmt: skip
    claim = {"p", "p_holm", "mean", "low", "high", "cases", "patients", "repetitions"}
    assert claim < document["claims"][0].keys() and "pairs" not in document
    assert document["versions"]["gossipseg"]


@pytest.mark.slow
def test_a_pattern_for_patients_reaches_the_runs_and_is_one_study_s(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = arguments(hospitals, out, "local", "--patient-pattern")
    assert main.run([*told, "case_(.+)"]) == 0
    (row, _) = read(out)["runs"]
    assert row["patients"] and all(case == f"case_{patient}" for case, patient in row["patients"].items())
    listed = json.loads((out / "splits" / "0" / row["site"] / "dataset.json").read_text())
    assert all(entry["patient"] for entry in listed["training"])
    capsys.readouterr()
    assert main.run([*told, "(case_.+)"]) == 78
    assert "patient_pattern" in capsys.readouterr().err


def alike(a: Any, b: Any) -> bool:
    """Equal, but for the last digits: a library may round otherwise where its buffers lie otherwise."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float | int):
        return bool(a == pytest.approx(b, rel=1e-2, abs=1e-2))
    return bool(a == b)


def test_another_process_comes_to_the_same_result(compared: Path, hospitals: Path) -> None:
    """A worker process, with another seed of Python's hashes, against this one."""
    wanted = next(r for r in read(compared)["runs"] if r["algorithm"].startswith("gcml"))
    made = rig.plan(hospitals, wanted["algorithm"], sites="lakeside,north")
    here = json.loads(json.dumps(rig.timeless(rig.run(made))[wanted["site"]]))
    there = rig.timeless({"": wanted})[""]
    assert here["sent_to"] == there["sent_to"] and here["merged_from"] == there["merged_from"]
    differing = {k: (here[k], there.get(k)) for k in here if not alike(here[k], there.get(k))}
    assert not differing and here.keys() == there.keys()


@pytest.mark.slow
def test_two_jobs_come_to_the_figures_of_one(compared: Path, hospitals: Path, tmp_path: Path) -> None:
    assert main.run([*arguments(hospitals, tmp_path), "--jobs", "2"]) == 0
    assert (tmp_path / "runs" / "worker-2.log").exists(), "another process had a part of the runs"
    one, two = read(compared), read(tmp_path)
    assert [(r["run"], r["site"]) for r in two["runs"]] == [(r["run"], r["site"]) for r in one["runs"]]
    for a, b in zip(one["runs"], two["runs"], strict=True):
        a, b = rig.timeless({"": a})[""], rig.timeless({"": b})[""]
        assert a["sent_to"] == b["sent_to"] and a["merged_from"] == b["merged_from"]
        differing = {k: (a[k], b.get(k)) for k in a if not alike(a[k], b.get(k))}
        assert not differing and a.keys() == b.keys()
    figures = ("algorithm", "overall", "by_site", "model_bytes", "relative_bytes", "gradient_evaluations")
    for a, b in zip(one["summary"], two["summary"], strict=True):
        assert alike({key: a[key] for key in figures}, {key: b[key] for key in figures})


def test_the_report_is_one_file_that_says_who_does_not_win(compared: Path) -> None:
    page = (compared / "report.html").read_text()
    assert "What each site deploys" in page and "deployed 0." in page
    assert "<script" not in page
    assert "http" not in page.replace("data:image", "")
    assert "Dice measures how well" in page
    assert "<b>gcml[gossip.sender_rate=1]</b>: sites send models straight to one another" in page
    assert "± standard deviation" not in page, "of one repetition there is no spread"
    assert "not win against" in page or "does not make it the winner" in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 7
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)


def test_report_draws_again_from_the_results_alone(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(compared)
    page = compared / "report.html"
    page.unlink()
    assert main.run(["report", "--out", str(compared)]) == 0
    assert page.is_file()
    assert read(compared)["runs"] == before["runs"]
    table = capsys.readouterr().out
    assert "all sites" in table
    assert "gcml[gossip.sender_rate=1]" in table
    assert main.run(["report", "--out", str(compared), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == before["runs"]


def test_a_claim_is_named_and_drawn_again(
    compared: Path, hospitals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`local` against another is a claim already; two that are none of the references become one."""
    named = "gcml[gossip.sender_rate=1]:local"
    assert main.run(arguments(hospitals, compared, ALGORITHMS, "--claim", named)) == 0
    assert read(compared)["named_claims"] == [named.split(":")]
    assert len(read(compared)["claims"]) == 3
    document = {**read(compared), "pairs": [], "named_claims": [["fedavg", "gcml[gossip.sender_rate=1]"]]}
    (compared / "results.json").write_text(json.dumps(document))
    assert main.run(["report", "--out", str(compared)]) == 0
    assert len(read(compared)["claims"]) == 3 and "pairs" not in read(compared), "as before, and no more"
    assert read(compared)["named_claims"] == document["named_claims"]
    assert "corrected for the number of comparisons (3; Holm)" in capsys.readouterr().out


def test_finished_runs_are_kept_and_others_added(
    compared: Path, hospitals: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = compared / "runs" / "local-seed0.json"
    before = file.stat().st_mtime_ns
    assert main.run(arguments(hospitals, compared, "local,fedavg")) == 0
    assert "0 runs to do; 2 are there already" in capfd.readouterr().err
    assert file.stat().st_mtime_ns == before
    assert main.run(arguments(hospitals, compared)) == 0


@pytest.mark.slow
def test_redrawn_splits_test_other_patients(hospitals: Path, tmp_path: Path) -> None:
    assert main.run([*arguments(hospitals, tmp_path, "local"), "--splits", "0,1"]) == 0
    rows = read(tmp_path)["runs"]
    tested = {(r["split"], r["site"]): {c["id"] for c in r["cases"]} for r in rows}
    assert [r["split"] for r in rows] == [0, 0, 1, 1]
    assert tested[0, "north"] != tested[1, "north"]
    assert "2 repetitions on 2 divisions of the patients" in (tmp_path / "report.html").read_text()


def test_a_folder_of_other_settings_is_refused(
    compared: Path, hospitals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main.run(arguments(hospitals, compared, ALGORITHMS, "--set", "training.learning_rate=0.5"))
    assert code == 78
    said = capsys.readouterr().err
    assert "settings.json: chosen.training.learning_rate = 0.5" in said
    assert "Give another --out" in said


def test_a_damaged_run_file_is_named(
    compared: Path, hospitals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = compared / "runs" / "local-seed0.json"
    whole = file.read_text()
    try:
        file.write_text(whole[: len(whole) // 2])
        assert main.run(arguments(hospitals, compared)) == 78
        assert "local-seed0.json" in capsys.readouterr().err
    finally:
        file.write_text(whole)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--algorithms", "gmcl"), 78, "Did you mean `gcml`"),
        (("--sites", "nroth"), 78, "no such site"),
        (("--sites", ""), 78, "names no site"),
        (("--seeds", "a,b"), 78, "must be whole numbers"),
        (("--device", "gpu"), 78, "is no device"),
        (("--rounds", "0"), 78, "at least 1"),
        (("--data", "/nowhere"), 65, "no such folder"),
        (("--claim", "local:ditto"), 78, "names no two of the algorithms"),
        (("--jobs", "0"), 2, "Try `gossiplab compare --help`"),
        (("--nonsense",), 2, "gossiplab"),
    ],
)
def test_bad_input_is_answered_in_words_and_with_its_code(
    hospitals: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    assert main.run([*arguments(hospitals, tmp_path / "out"), *more]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing is made before all is checked"


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["report", "--out", str(tmp_path), "--json"]) == 78
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == 78
    assert "holds no results.json" in captured.err


# ---------------------------------------------------------------- interruptions


def _started(data: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gossipseg.lab.main", *arguments(data, out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _ends(fd: int) -> bool:
    """Whether the process behind a pidfd ends in time."""
    return bool(select.select([fd], [], [], DEADLINE_S)[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_comparison_leaves_no_process_and_goes_on(
    hospitals: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = _started(hospitals, out)
    assert process.stderr is not None
    for line in process.stderr:
        if "(1 of 3)" in line:
            break
    workers = [os.pidfd_open(pid) for pid in _children(process.pid)]
    assert workers
    process.send_signal(number)
    code = process.wait(DEADLINE_S)
    assert code == (-9 if number == signal.SIGKILL else 130)
    assert all(_ends(fd) for fd in workers), "the worker ends with the one who started it"
    for fd in workers:
        os.close(fd)
    assert ("interrupted; the same command continues" in process.stderr.read()) == (number != signal.SIGKILL)
    process.stderr.close()
    first = out / "runs" / "local-seed0.json"
    before = first.stat().st_mtime_ns
    assert not (out / "results.json").exists()
    if number is not signal.SIGTERM:
        return
    assert main.run(arguments(hospitals, out)) == 0
    assert first.stat().st_mtime_ns == before, "what was done is not done again"
    assert len(read(out)["runs"]) == 6


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_its_run_alone(hospitals: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _started(hospitals, out)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("(1 of 3)" in line for line in lines)
    (worker,) = _children(process.pid)
    os.kill(worker, signal.SIGKILL)
    said = "".join(lines)
    assert process.wait(DEADLINE_S) == 1
    process.stderr.close()
    assert "FAILED: its process ended with code -9" in said
    document = read(out)
    assert len(document["failed"]) == 1
    assert len(document["runs"]) == 4, "another worker has done the rest"
    assert "failed, and is not in the figures" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_its_code(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that turns out to be none when a worker reads it."""
    sites = tmp_path / "data"
    shutil.copytree(hospitals, sites)
    listed = json.loads((sites / "north" / "dataset.json").read_text())
    last = listed["test"][-1]["image"]
    (sites / "north" / last).write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main.run(arguments(sites, out, "local")) == 65
    captured = capsys.readouterr()
    assert "local-seed0 failed" in captured.err
    assert Path(last).name in captured.err
    assert "No run has finished" in captured.out
    assert read(out)["failed"].keys() == {"local-seed0"}
