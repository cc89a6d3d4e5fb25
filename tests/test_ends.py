"""How programs begin and end when something is wrong around them: words and an exit code, no traceback."""

from __future__ import annotations

import argparse
import ast
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossipseg import children, console, ends
from gossipseg.ctl import context
from gossipseg.daemon import main as daemon_main
from gossipseg.daemon.observe import logs
from gossipseg.errors import EXIT_CONFIG, EXIT_IO, ConfigError
from gossipseg.learn.commands import cli

ROOT = Path(__file__).parent.parent
ENTRY = "import sys; sys.argv[0] = {0!r}; from gossipseg import ends; ends.{1}()"
PROGRAMS = {"gossipctl": "ctl", "gossiplab": "lab", "gossipsegd": "daemon"}


def run(
    program: str, *arguments: object, shell: str = "", **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """The program as its console script starts it; `shell` holds redirections. Its output is buffered, as
    users have it."""
    keywords.setdefault("env", {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"})
    command = [sys.executable, "-P", "-c", ENTRY.format(program, PROGRAMS[program]), *map(str, arguments)]
    if shell:
        command = ["sh", "-c", f'"$0" "$@" {shell}', *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **keywords)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("gossipctl", ["version"]),
        ("gossipctl", ["version", "--json"]),
        ("gossipctl", ["init", "--help"]),
        ("gossipsegd", ["--version"]),
        ("gossipsegd", ["--help"]),
        ("gossiplab", ["--help"]),
    ],
)
@pytest.mark.parametrize(
    ("shell", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_an_output_that_takes_nothing(program: str, arguments: list[str], shell: str, why: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = run(program, *arguments, shell=shell, env=env)
    assert done.returncode == EXIT_IO, done.stderr
    assert done.stderr == f"{program}: standard output cannot be written: {why}\n"


def test_an_error_keeps_its_code_where_nobody_can_be_told(tmp_path: Path) -> None:
    missing = ["--config", tmp_path / "no.yaml"]
    for shell in (">/dev/full", ">&-", ">&- 2>&-", "2>/dev/full", "<&- >&- 2>&-"):
        assert run("gossipctl", "status", "--json", *missing, shell=shell).returncode == EXIT_CONFIG, shell
        assert run("gossipsegd", *missing, shell=shell).returncode == EXIT_CONFIG, shell


def test_what_goes_to_a_closed_stderr_does_not_come_out_on_stdout(tmp_path: Path) -> None:
    done = run("gossipctl", "status", "--json", "--config", tmp_path / "no.yaml", shell="2>&-")
    assert json.loads(done.stdout)["kind"] == "error"


def test_a_file_that_is_opened_does_not_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "from gossipseg import ends; ends.open_streams(); import os, sys\n"
        f"fd = os.open({str(tmp_path / 'f')!r}, os.O_WRONLY | os.O_CREAT); assert fd > 2, fd\n"
        "print('x', file=sys.stderr)"
    )
    for shell in ("2>&-", ">&-", "<&-", "<&- >&- 2>&-"):
        subprocess.run(["sh", "-c", f'"$0" "$@" {shell}', sys.executable, "-P", "-c", code], check=True)
    assert (tmp_path / "f").read_bytes() == b""


def test_learn_commands_tell_of_their_output_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        silenced: list[bool] = []
        patch.setattr(ends, "silence_stdout", lambda: silenced.append(True))

        def prints(args: argparse.Namespace) -> int:
            cli.write_json({"much": "x" * 100_000}, "-")
            return 0

        assert cli.run(prints, argparse.ArgumentParser(), []) == EXIT_IO
        assert silenced
    assert "error: standard output cannot be written: No space left" in capfd.readouterr().err


# ---------------------------------------------------------------- directories


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for program, arguments in (
        ("gossipctl", ["status"]),
        ("gossipctl", ["status", "--config", "x/site.yaml"]),
        ("gossipctl", ["init", "--name", "north"]),
        ("gossipctl", ["peers", "--socket", "x.sock"]),
        ("gossipctl", ["testbed", "init", "--out", "x"]),
        ("gossipsegd", ["--config", "site.yaml"]),
        ("gossiplab", ["report", "--out", "x"]),
    ):
        gone.mkdir()
        command = [sys.executable, "-P", "-c", ENTRY.format(program, PROGRAMS[program]), *arguments]
        shell = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), *command]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 65, 69, 78) and "Traceback" not in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.splitlines()) == 1 and "unexpectedly" not in done.stderr, done.stderr


def test_places_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(self: Path, **_: bool) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.delenv("GOSSIPSEG_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(context, "SYSTEM_SITE_FILE", tmp_path / "etc" / "site.yaml")
    with pytest.raises(ConfigError, match=r"there is no site\.yaml"):
        context.find_site_file(None)
    with monkeypatch.context() as patch, pytest.raises(ConfigError) as caught:
        patch.setattr(Path, "stat", refused)
        context.find_site_file(None)
    assert f"{tmp_path}/site.yaml (Permission denied)" in str(caught.value) and "as root" in str(caught.value)


def test_no_home(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("site: a\ndata: {path: x}\nstate_dir: ~nosuch/state\n")
    env = {k: v for k, v in os.environ.items() if k != "HOME"}
    done = run("gossipctl", "status", cwd=tmp_path, env=env)
    assert done.returncode == 78 and "no home directory is known" in done.stderr
    done = run("gossipsegd", "--set", "state_dir=~nosuch/x", cwd=tmp_path, env=env)
    assert done.returncode == 78 and "flag for state_dir" in done.stderr


# ---------------------------------------------------------------- imports

TOO_OLD = type("VersionError", (Exception,), {})
WRONG = [
    (KeyboardInterrupt(), 130, ""),
    (ImportError("cannot import name 'runtime_version'"), 78, "do not fit together"),
    (TOO_OLD("gencode 7.35.1 runtime 5.29.0"), 78, "do not fit together"),
    (RuntimeError("grpc is at 1.60, but the generated code depends on 1.85"), 78, "do not fit together"),
    (OSError(errno.EACCES, "Permission denied", "/opt/x.so"), 1, "/opt/x.so: Permission denied"),
    (MemoryError(), 1, "not enough memory"),
    (KeyError("x"), 1, "failed unexpectedly: KeyError"),
]


@pytest.mark.parametrize(("error", "code", "words"), WRONG, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_import_that_fails_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr(ends.importlib, "import_module", broken)
    monkeypatch.setattr(sys, "argv", [program, "--json"])
    with pytest.raises(SystemExit) as caught:
        getattr(ends, PROGRAMS[program])()
    wanted = 0 if program == "gossipsegd" and code == 130 else code
    shown = capsys.readouterr()
    assert caught.value.code == wanted and words in shown.err
    assert len(shown.err.splitlines()) == (1 if words else 0)
    if words:
        assert json.loads(shown.out)["exit_code"] == code


@pytest.mark.parametrize(("error", "code", "words"), WRONG[1:], ids=lambda v: type(v).__name__)
def test_so_does_one_within_a_command(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str
) -> None:
    def command() -> None:
        raise error

    assert console.run("gossipctl", command, as_json=False) == code
    assert words in capsys.readouterr().err
    assert cli.run(lambda args: command(), argparse.ArgumentParser(), []) == code  # type: ignore[func-returns-value]
    assert words in capsys.readouterr().err


def test_ctrl_c_while_a_learn_command_is_imported(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text("raise KeyboardInterrupt\n")
    env = children.environment(PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    command = [*children.python_module("gossipseg.ends"), "stopped"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


# ---------------------------------------------------------------- the daemon


@pytest.mark.parametrize(("form", "configured"), [("text", False), ("text", True), ("json", True)])
def test_the_daemon_logs_a_traceback_and_ends_with_a_line_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str, configured: bool
) -> None:
    def broken(args: argparse.Namespace) -> int:
        if configured:
            logs.setup(form, "info")
        else:
            logs.hold()
        raise KeyError("mine")

    monkeypatch.setattr(daemon_main, "_run", broken)
    assert daemon_main.main([]) == 1
    shown = capsys.readouterr().err
    last = shown.splitlines()[-1]
    assert last.startswith("gossipsegd: failed unexpectedly: KeyError: 'mine' (gossipseg ")
    assert "Please report" in last and shown.count("Traceback") == 1
    if form == "json":
        assert "KeyError: 'mine'" in json.loads(shown.splitlines()[0])["traceback"]


def test_a_log_file_that_cannot_be_opened_names_its_key(tmp_path: Path) -> None:
    (tmp_path / "peers.yaml").write_bytes((ROOT / "peers.yaml").read_bytes())
    (tmp_path / "site.yaml").write_text("site: north\ndata: {path: x}\nlog: {file: peers.yaml/log}\n")
    done = run("gossipsegd", cwd=tmp_path)
    assert done.returncode == 78 and "log.file" in done.stderr and len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- what lies where a command is typed


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder in which every import that looks there goes wrong."""
    (tmp_path / "gossipseg").mkdir()
    for name in ("gossipseg/__init__.py", "random.py", "torch.py", "yaml.py", "grpc.py"):
        (tmp_path / name).write_text(f"raise SystemExit('{name} of the working directory was imported')\n")
    return tmp_path


def test_children_do_not_import_from_the_working_directory(trap: Path) -> None:
    env = children.environment()
    command = [*children.python_module("gossipseg.ctl.main"), "version"]
    done = subprocess.run(command, cwd=trap, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "gossipctl" in done.stdout, done.stderr


def test_nor_do_their_own_children(trap: Path) -> None:
    command = "[sys.executable, '-m', 'gossipseg.ctl.main', 'version']"
    code = f"import subprocess, sys; sys.exit(subprocess.call({command}))"
    for env in (children.environment(), children.safe({**os.environ, "PYTHONSAFEPATH": ""})):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], cwd=trap, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_every_python_is_started_the_safe_way() -> None:
    """sys.executable and `-m` stand in children.py alone."""
    allowed: Callable[[ast.AST], bool] = lambda node: isinstance(node, ast.Constant) and node.value == "-m"  # noqa: E731
    for path in sorted((ROOT / "gossipseg").rglob("*.py")):
        if path.name == "children.py" or "_pb2" in path.name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            assert not allowed(node), f"{where}: use gossipseg.children"
            assert not (isinstance(node, ast.Attribute) and node.attr == "executable"), where


@pytest.mark.parametrize("program", ["gossipctl", "gossiplab"])
def test_a_program_without_a_command_prints_its_help_in_lines(program: str, tmp_path: Path) -> None:
    done = run(program, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.lstrip().startswith("Usage:") and len(done.stderr.splitlines()) > 5
