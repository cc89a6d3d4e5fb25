"""Commands that ask the daemon: against a real control server, to a pipe, to a terminal, in JSON."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from gossipseg.core.rounds.status import RoundsView
from gossipseg.ctl.status import pairs
from gossipseg.ctl.watch import picture
from gossipseg.errors import ConfigError
from gossipseg.wire import documents as doc
from tests.ctl.samples import FOLLOWED, HASH, LED, PEERS, STATUS, UNTOLD, rounds, status_of

ASKING = (
    "status",
    "peers",
    "exchanges",
    "models",
    "rounds",
    "events",
    "watch",
    "pause",
    "resume",
    "leave",
    "reload",
)
GOSSIPCTL = [sys.executable, "-m", "gossipseg.ctl.main"]


def plain(text: str) -> bool:
    return "\t" not in text and "\x1b" not in text and "\u2502" not in text


# ---------------------------------------------------------------- status


def test_status_shows_everything_in_plain_aligned_lines(daemon: Any, ctl: Any) -> None:
    result = ctl("status", "--socket", daemon.socket)
    assert result.code == 0
    assert plain(result.out)
    assert len({re.match(r"\w* *", line).end() for line in result.lines if line}) == 1, "one column of texts"  # type: ignore[union-attr]
    shown = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.lines)
    assert shown["site"] == "north of test"
    assert shown["phase"] == "training, round 3 of 10 done, now training, step 25 of 100"
    assert shown["splits"] == "drawn from the seed, kept in /s/splits.json"
    assert shown["loss"] == "0.5123"
    assert shown["Dice"] == "validation 0.710, test 0.100 at the start"
    assert shown["models"] == "4 sent, 3 received: 2 accepted, 1 refused, 0 waiting"
    assert shown["bytes"] == "12.3 MB out, 2.0 kB in"
    assert shown["members"] == "2 alive, 1 dead"
    assert shown["worker"] == "training, process 4711, restarted 2 times"
    assert shown["discovery"] == "listed addresses; ignored: federation other at 10.0.0.9"
    assert shown["daemon"] == "version 0.1.0, up 1 h 6 min, self-health 0 of 7"


@pytest.mark.parametrize("state", ["degraded", "failed"])
def test_status_exits_1_with_its_reasons(daemon: Any, ctl: Any, state: str) -> None:
    reasons = ("west: dead: no answer for 21 s", "disk: full")
    daemon.answers.status_doc = msgspec.structs.replace(STATUS, state=state, reasons=reasons)
    for flags in ([], ["--json"]):
        result = ctl("status", "--socket", daemon.socket, *flags)
        assert result.code == 1
        assert all(reason in result.out for reason in reasons)


def test_status_of_a_daemon_that_has_just_started(daemon: Any, ctl: Any) -> None:
    daemon.answers.status_doc = doc.StatusDoc(
        site="north", federation="test", activity="scanning", fraction=0.5
    )
    result = ctl("status", "--socket", daemon.socket)
    assert result.code == 0
    assert "starting, round 0 done, now scanning 50 %" in result.out
    assert "None" not in result.out and "no other site is listed" in result.out


def test_json_is_the_document_of_the_wire(daemon: Any, ctl: Any) -> None:
    assert ctl("status", "--socket", daemon.socket, "--json").json == STATUS.to_dict()
    assert ctl("peers", "--socket", daemon.socket, "--json").json == PEERS.to_dict()
    for command in ASKING:
        result = ctl(command, "--socket", daemon.socket, "--json")
        assert result.code == 0, command
        assert result.json["schema"] == 1, command
        assert len(result.lines) == 1, "one line for a pipe"


# ---------------------------------------------------------------- tables


def test_peers_table(daemon: Any, ctl: Any) -> None:
    result = ctl("peers", "--socket", daemon.socket)
    assert result.code == 0 and plain(result.out)
    rows = [re.split(r"\s{2,}", line) for line in result.lines]
    assert rows[0] == [
        *("SITE", "ID", "ADDRESS", "STATE", "ROUND", "CASES", "LAST SEEN", "RTT"),
        *("SENT", "RECEIVED", "OUT", "IN", "WHY"),
    ]
    assert rows[1] == [
        *("south", "AAAAAAA", "10.0.0.2:7443", "alive", "4", "31", "3 s ago", "0.4 ms"),
        *("4", "3", "10.0 MB", "2.0 MB", "-"),
    ]
    assert rows[2][3:8] == ["dead", "2", "9", "1 min 35 s ago", "12 ms"]
    assert rows[2][-1] == "no answer for 21 s"
    assert rows[3][-1] == "task.channels: 3 here, 1 there"
    assert rows[4][:8] == ["far", "-", "10.0.0.5:7443", "unseen", "-", "-", "never", "-"]
    positions = {
        line.index(word) for line, word in zip(result.lines, ("STATE", "alive", "dead"), strict=False)
    }
    assert len(positions) == 1, "columns are aligned"
    assert PEERS.peers[0].id in ctl("peers", "--wide", "--socket", daemon.socket).out


def test_empty_tables_say_so(daemon: Any, ctl: Any) -> None:
    daemon.answers.peers_doc = doc.PeersDoc()
    for command in ("peers", "exchanges", "models", "events"):
        result = ctl(command, "--socket", daemon.socket)
        assert result.code == 0 and len(result.lines) == 1 and result.out.strip().endswith("."), command


def test_exchanges_table(daemon: Any, ctl: Any) -> None:
    daemon.answers.exchanges_doc = doc.ExchangesDoc(
        (
            doc.ExchangeRow(1.7e9, "out", "south", HASH, 10**6, 4, "sending", "", 0.42),
            doc.ExchangeRow(1.7e9, "in", "west", HASH, 10**6, 4, "reverted", "Dice fell", None, 0.7, 0.5),
        )
    )
    result = ctl("exchanges", "-n", 7, "--socket", daemon.socket)
    assert plain(result.out)
    assert daemon.answers.asked == [("exchanges", 7)]
    assert "sending 42 %" in result.lines[1]
    assert re.search(r"reverted +0\.700 +0\.500 +Dice fell$", result.lines[2])
    assert HASH[:12] in result.out and HASH[:13] not in result.out


LED_LINES = (
    r"round +1, attempt 0, led by this site",
    r"here +gathering: 2 delivered",
    r"quorum +2 of 3 sites",
    r"deadline +in 1 min 40 s$",
    r"delivered +2 of 3 sites: b, me$",
    r" +- z has not delivered: training$",
    r"global model +the initial one",
    r"b +delivered +-$",
    r"me +delivered +-$",
    r"z +training +-$",
)
FOLLOWED_LINES = (
    r"round +2, attempt 0, led by z",
    r"here +waiting: for z",
    r"deadline +in 1 min 31 s \(as z said 4 s ago\)",
    r"delivered +2 of 3 sites: me, z \(as z said 4 s ago\)",
    r" +- b is left out: no_answer",
    r"global model +of round 1, [0-9a-f]{8}, from b, z",
    r" +- closed without me: late",
    r"b +left_out +no_answer$",
    r"me +delivered +-$",
)
UNTOLD_LINES = (
    r"round +2, attempt 0, led by z",
    r"deadline +not said by z yet$",
    r"delivered +not said by z yet$",
    r"z +coordinator +-$",
)


@pytest.mark.parametrize(
    ("seen", "code", "lines"),
    [(LED, 0, LED_LINES), (FOLLOWED, 1, FOLLOWED_LINES), (UNTOLD, 1, UNTOLD_LINES)],
    ids=["led here", "led elsewhere", "before the first word"],
)
def test_rounds_say_who_leads_who_is_missing_and_why(
    daemon: Any, ctl: Any, seen: RoundsView, code: int, lines: tuple[str, ...]
) -> None:
    daemon.answers.rounds_doc = rounds(seen)
    result = ctl("rounds", "--socket", daemon.socket)
    assert result.code == code, "1 where the last round was closed without a listed site"
    assert plain(result.out)
    for line in lines:
        assert re.search(f"^{line}", result.out, re.M), (line, result.out)
    assert doc.parse(ctl("rounds", "--socket", daemon.socket, "--json").out) == rounds(seen)


def test_rounds_show_how_alike_the_changes_were(daemon: Any, ctl: Any) -> None:
    compared = {"similarity_round": 7, "similarity_sites": ("north", "south")}
    whole = msgspec.structs.replace(rounds(LED), similarity=((1.0, 0.25), (0.25, 1.0)), **compared)
    daemon.answers.rounds_doc = whole
    result = ctl("rounds", "--socket", daemon.socket)
    assert result.code == 0 and "found here in round 7" in result.out
    assert re.search(r"^south +0\.25 +1\.00", result.out, re.M)
    assert doc.parse(ctl("rounds", "--socket", daemon.socket, "--json").out) == whole


def test_rounds_that_nobody_leads(daemon: Any, ctl: Any) -> None:
    daemon.answers.rounds_doc = msgspec.structs.replace(rounds(UNTOLD), coordinator="", attempt=None)
    out = ctl("rounds", "--socket", daemon.socket).out
    assert "no attempt, led by nobody" in out and "unknown: nobody leads" in out


@pytest.mark.parametrize(
    ("seen", "text", "missing"),
    [
        (
            LED,
            "of round 0; round 1, attempt 0, led by this site; delivered: 2 of 3 sites: b, me; "
            "deadline: in 1 min 40 s",
            "- z has not delivered: training",
        ),
        (
            FOLLOWED,
            "of round 1; round 2, attempt 0, led by z; delivered: 2 of 3 sites: me, z; "
            "deadline: in 1 min 31 s (as z said 4 s ago)",
            "- b is left out: no_answer",
        ),
        (
            UNTOLD,
            "of round 1; round 2, attempt 0, led by z; delivered: not said by z yet; "
            "deadline: not said by z yet",
            "",
        ),
    ],
    ids=["led here", "led elsewhere", "before the first word"],
)
def test_status_says_how_far_the_round_is(
    daemon: Any, ctl: Any, seen: RoundsView, text: str, missing: str
) -> None:
    daemon.answers.status_doc = status_of(seen)
    result = ctl("status", "--socket", daemon.socket)
    at = next(i for i, line in enumerate(result.lines) if line.startswith("rounds"))
    assert result.lines[at].rstrip().endswith(text), result.out
    assert (missing in result.lines[at + 1]) if missing else "- " not in result.lines[at + 1]
    document = ctl("status", "--socket", daemon.socket, "--json").json
    assert document["under_way"]["missing"] == [msgspec.structs.asdict(r) for r in rounds(seen).missing]
    assert doc.StatusDoc.from_dict(document) == status_of(seen)


def test_status_of_an_older_daemon_names_the_coordinator_alone(daemon: Any, ctl: Any) -> None:
    daemon.answers.status_doc = msgspec.structs.replace(status_of(FOLLOWED), under_way=doc.RoundUnderWay())
    assert re.search(
        r"^rounds +global model of round 1; led by z now", ctl("status", "--socket", daemon.socket).out, re.M
    )


def test_rounds_of_a_gossiping_federation(daemon: Any, ctl: Any) -> None:
    daemon.answers.rounds_doc = doc.RoundsDoc(exchange="gossip")
    result = ctl("rounds", "--socket", daemon.socket)
    assert result.code == 0 and "no coordinator" in result.out


def test_who_is_kept_out_is_shown_and_let_in_again(daemon: Any, ctl: Any) -> None:
    rows = (
        doc.QuarantineRow("south", "watched", "too_large", None, 2, 2, 600.0),
        doc.QuarantineRow("west", "quarantined", "manifest_forged", 540.0, 0, 7, 1800.0),
    )
    daemon.answers.quarantine_doc = doc.QuarantineDoc(3, 3600.0, rows)
    result = ctl("quarantine", "list", "--socket", daemon.socket)
    assert result.code == 1 and plain(result.out)
    assert re.search(r"^west +quarantined +9 min 0 s +0 +7 +30 min +manifest_forged$", result.out, re.M)
    assert re.search(r"^south +watched +- +2 +2 +10 min +too_large$", result.out, re.M)
    assert ctl("quarantine", "lift", "west", "--socket", daemon.socket).code == 0
    assert ("lift_quarantine", "west") in daemon.answers.asked
    daemon.answers.quarantine_doc = doc.QuarantineDoc(3, 3600.0, rows[:1])
    assert ctl("quarantine", "list", "--socket", daemon.socket).code == 0


def test_models_table(daemon: Any, ctl: Any) -> None:
    daemon.answers.models_doc = doc.ModelsDoc((doc.ModelRow(HASH, 4_120_000, "inbox", "west", 5, 61),))
    result = ctl("models", "--socket", daemon.socket)
    assert re.search(r"inbox +west +5 +4\.1 MB +1 min 1 s$", result.lines[1])


def test_events_table(daemon: Any, ctl: Any) -> None:
    daemon.answers.events_doc = doc.EventsDoc(
        (
            {"seq": 1, "t": 1.7e9, "event": "member_dead", "site": "west", "reason": "no\tanswer\x1b[31m"},
            {
                "seq": 2,
                "t": 1.7e9,
                "event": "round_finished",
                "round": 3,
                "loss": 0.123456,
                "terms": {"seg": 0.5},
            },
            {"seq": 3, "event": "visit_merged", "site": "west", "hash": HASH, "dice_val": None},
        )
    )
    result = ctl("events", "--since", 5, "--socket", daemon.socket)
    assert daemon.answers.asked == [("events", 20, 5)]
    assert plain(result.out), "what other sites say cannot steer the terminal"
    assert "no answer [31m" in result.lines[1]
    assert result.lines[2].endswith("round=3 loss=0.1235 terms=seg:0.5")
    assert result.lines[3].endswith(f"west  hash={HASH[:12]}")


# ---------------------------------------------------------------- orders


@pytest.mark.parametrize("command", ["pause", "resume", "leave", "reload"])
def test_orders(daemon: Any, ctl: Any, command: str) -> None:
    result = ctl(command, "--socket", daemon.socket)
    assert (result.code, result.out, daemon.answers.asked) == (0, "done\n", [(command,)])


def test_a_refused_order_exits_1_with_the_daemons_words(daemon: Any, ctl: Any) -> None:
    daemon.answers.ok_doc = doc.OkDoc(False, "peers.yaml: sites: lists no sites.")
    result = ctl("reload", "--socket", daemon.socket)
    assert (result.code, result.out) == (1, "")
    assert result.err == "gossipctl: peers.yaml: sites: lists no sites.\n"
    result = ctl("reload", "--socket", daemon.socket, "--json")
    assert result.json["kind"] == "error" and result.json["exit_code"] == 1


def test_the_daemons_errors_are_one_paragraph(daemon: Any, ctl: Any) -> None:
    daemon.answers.error = ConfigError("bad", file="x.yaml", key="a", value=1, remedy="Mend it.")
    result = ctl("status", "--socket", daemon.socket)
    assert (result.code, result.out) == (1, "")
    assert result.err == "gossipctl: x.yaml: a = 1: bad. Mend it.\n"


# ---------------------------------------------------------------- watch


def test_watch_to_a_pipe_prints_a_line_for_each_change(daemon: Any, ctl: Any) -> None:
    later = msgspec.structs.replace(STATUS, round=4, reasons=("west: dead",), state="degraded")
    daemon.answers.frames = tuple(doc.WatchDoc(s, PEERS) for s in (STATUS, STATUS, later))
    result = ctl("watch", "--socket", daemon.socket)
    assert result.code == 0 and plain(result.out)
    assert len(result.lines) == 2
    assert result.lines[1].startswith("north | degraded | training, round 4 of 10 done")
    assert result.lines[1].endswith("| west: dead")


def test_watch_on_a_terminal_shows_what_changes_and_no_more() -> None:
    """Address, disk, contract and the like are for `gossipctl status`."""
    reasons = ("west: no answer for 21 s",)
    s = msgspec.structs.replace(STATUS, exchange="rounds", state="degraded", reasons=reasons)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(picture(doc.WatchDoc(s, PEERS)))
    shown = console.export_text()
    labels = {label for label, _ in pairs(s) if label and re.search(rf"^{label} +\S", shown, re.MULTILINE)}
    assert labels == {
        "site",
        "state",
        "phase",
        "loss",
        "Dice",
        "models",
        "rounds",
        "bytes",
        "members",
        "worker",
    }
    assert "- west: no answer for 21 s" in shown and "10.0.0.2:7443" in shown


def test_watch_ends_after_the_frames_asked_for(daemon: Any, ctl: Any) -> None:
    frames = [msgspec.structs.replace(STATUS, round=r) for r in range(5)]
    daemon.answers.frames = tuple(doc.WatchDoc(s) for s in frames)
    result = ctl("watch", "--frames", 2, "--json", "--socket", daemon.socket)
    assert [json.loads(line)["status"]["round"] for line in result.lines] == [0, 1]


# ---------------------------------------------------------------- nobody answers, wrong usage


@pytest.mark.parametrize("command", ASKING)
def test_unreachable_exits_69(tmp_path: Path, ctl: Any, command: str) -> None:
    result = ctl(command, "--socket", tmp_path / "nobody.sock")
    assert (result.code, result.out) == (69, "")
    assert str(tmp_path / "nobody.sock") in result.err and "gossipsegd" in result.err
    result = ctl(command, "--socket", tmp_path / "nobody.sock", "--json")
    assert result.code == 69
    assert result.json == {
        "schema": 1,
        "kind": "error",
        "error": "DaemonUnreachable",
        "message": result.err.removeprefix("gossipctl: ").strip(),
        "exit_code": 69,
    }


def test_a_daemon_that_has_ended_is_unreachable(daemon: Any, ctl: Any) -> None:
    assert ctl("status", "--socket", daemon.socket).code == 0
    daemon.stop()
    assert ctl("status", "--socket", daemon.socket).code == 69


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statsu"], "'status'"),
        (["status", "--jsn"], "--json"),
        (["events", "-n", "0"], "--limit"),
        (["peers", "add", "--name", "x"], "--address"),
        (["init"], "--name"),
        (["predict"], "images"),
        (["exchanges", "-n", "many"], "--limit"),
    ],
)
def test_wrong_usage_exits_2(ctl: Any, arguments: list[str], words: str) -> None:
    result = ctl(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err and result.err.count("\n") == 1 and "--help" in result.err
    document = ctl(*arguments, "--json").json
    assert (document["kind"], document["exit_code"]) == ("error", 2)


def test_no_command_shows_the_list(ctl: Any) -> None:
    result = ctl()
    assert result.code == 2
    for command in (*ASKING, "init", "id", "check", "config", "version", "predict", "testbed", "demo"):
        assert re.search(rf"\b{command}\b", result.out + result.err), command


@pytest.mark.parametrize(
    "command", [*ASKING, "version", "check", "config", "id", "predict", "evaluate", "export"]
)
def test_every_command_has_json_and_config(ctl: Any, command: str) -> None:
    result = ctl(command, "--help")
    assert result.code == 0
    assert "--json" in result.out and "--config" in result.out


@pytest.mark.parametrize("command", ["testbed", "demo"])
def test_larger_commands_are_loaded_when_named(ctl: Any, command: str) -> None:
    result = ctl(command, "--help")
    assert result.code == 0 and f"gossipctl {command}" in result.out


# ---------------------------------------------------------------- which daemon


def test_socket_follows_site_yaml_and_environment(
    daemon: Any, ctl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("site: north\ncontrol_socket: control.sock\n")
    assert ctl("status", "--config", site).code == 0
    site.write_text("site: north\nstate_dir: .\n")
    assert ctl("status", "--config", site).code == 0
    monkeypatch.chdir(tmp_path)
    assert ctl("status").code == 0, "./site.yaml"
    monkeypatch.chdir("/")
    monkeypatch.setenv("GOSSIPSEG_CONFIG", str(site))
    assert ctl("status").code == 0, "$GOSSIPSEG_CONFIG"
    site.write_text("site: north\n")
    assert ctl("status").code == 69, "the default is state/control.sock"
    monkeypatch.setenv("GOSSIPSEG_STATE_DIR", ".")
    assert ctl("status").code == 0
    monkeypatch.setenv("GOSSIPSEG_CONTROL_SOCKET", "elsewhere.sock")
    assert ctl("status").code == 69


def test_a_running_daemon_is_shown_whatever_site_yaml_says_now(daemon: Any, ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("state_dir: .\nno_such_key: 1\n")
    assert ctl("status", "--config", tmp_path / "site.yaml").code == 0


@pytest.mark.parametrize("text", ["a: [", "", "- x"])
def test_a_site_file_that_cannot_be_read_exits_78(ctl: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    result = ctl("status", "--config", tmp_path / "site.yaml")
    assert result.code == 78 and str(tmp_path / "site.yaml") in result.err


def test_no_site_file_exits_78_and_names_the_places(
    ctl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ctl("status")
    assert result.code == 78
    for place in (
        "$GOSSIPSEG_CONFIG",
        str(tmp_path / "site.yaml"),
        "/etc/gossipseg/site.yaml",
        "gossipctl init",
    ):
        assert place in result.err
    assert ctl("status", "--config", "nowhere.yaml").code == 78


# ---------------------------------------------------------------- version


def test_version(daemon: Any, ctl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone = ctl("version")
    assert alone.code == 0 and "not asked: there is no site.yaml" in alone.out
    asked = ctl("version", "--json", "--socket", daemon.socket).json
    assert (asked["kind"], asked["daemon"]) == ("version", "0.1.0")
    assert ctl("version", "--socket", tmp_path / "nobody").code == 69


# ---------------------------------------------------------------- as a process of its own


def test_quick_commands_import_nothing_heavy(daemon: Any) -> None:
    code = (
        "import sys; from gossipseg.ctl import main; code = main.run(sys.argv[1:]); "
        "heavy = {'torch', 'monai', 'numpy', 'zeroconf', 'cryptography', 'rich', 'asyncio.subprocess'}; "
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    for command in ("status", "peers", "exchanges", "events", "pause", "version"):
        done = subprocess.run(
            [sys.executable, "-c", code, command, "--socket", str(daemon.socket)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert set(done.stderr.split()) <= {"asyncio.subprocess"}, f"{command} imports {done.stderr}"


@pytest.mark.parametrize("command", ["status", "peers", "watch"])
def test_on_a_terminal_states_have_colours(daemon: Any, command: str) -> None:
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [*GOSSIPCTL, command, "--socket", str(daemon.socket)], stdout=follower, stderr=follower, env=env
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the terminal's other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    assert process.wait(30) == 0
    assert b"\x1b[32m" in shown, "something is green"
    assert b"Traceback" not in shown
    assert {"status": b"north of test", "peers": b"10.0.0.2:7443", "watch": b"25 %"}[command] in shown


def test_a_reader_that_has_seen_enough_is_no_error(daemon: Any) -> None:
    rows = tuple({"seq": i, "t": 1.7e9, "event": "x" * 100, "site": ""} for i in range(5000))
    daemon.answers.events_doc = doc.EventsDoc(rows)
    ask = " ".join([*GOSSIPCTL, "events", "--socket", str(daemon.socket)])
    done = subprocess.run(["sh", "-c", f"{ask} | head -n 1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_was_never_there_is_no_traceback(daemon: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # written only at the end
    ask = [*GOSSIPCTL, "status", "--socket", str(daemon.socket)]
    process = subprocess.Popen(ask, stdout=writer, stderr=subprocess.PIPE, text=True, env=env)
    os.close(writer)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 1)
