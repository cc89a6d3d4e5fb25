"""Daemons as processes: found again, never mistaken for another process, ended even when they refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg.errors import LocalError
from gossipseg.testbed import processes
from gossipseg.testbed.processes import DaemonProcess


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A real process that ends at SIGTERM."""
    yield from child(tmp_path, "import sys; print('ready', flush=True); sys.stdin.read()")


@pytest.fixture
def stubborn(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A real process that ignores SIGTERM."""
    yield from child(
        tmp_path,
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); sys.stdin.read()",
    )


def child(tmp_path: Path, code: str) -> Iterator[DaemonProcess]:
    log = tmp_path / "daemon.log"
    log.write_text("one\ntwo\nthree\n")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield DaemonProcess("north", process.pid, processes._born(process.pid), log, process)
        if process.poll() is None:
            process.kill()


def test_it_lives_until_it_is_asked_to_end(sleeper: DaemonProcess) -> None:
    assert sleeper.alive()
    assert processes.stop([sleeper]) == []
    assert not sleeper.alive()
    assert sleeper.exit_code == -signal.SIGTERM


def test_one_that_does_not_end_is_killed_and_named(stubborn: DaemonProcess) -> None:
    assert processes.stop([stubborn], grace_s=0.3) == ["north"]
    assert not stubborn.alive()
    assert stubborn.exit_code == -signal.SIGKILL


def test_another_process_of_the_same_pid_is_not_it(sleeper: DaemonProcess, tmp_path: Path) -> None:
    stranger = DaemonProcess("north", sleeper.pid, "12345", sleeper.log)
    assert not stranger.alive()
    assert processes.stop([stranger]) == []
    assert sleeper.alive(), "it was not signalled"


def test_what_was_started_is_found_again_by_another_process(sleeper: DaemonProcess, tmp_path: Path) -> None:
    processes._save(tmp_path, [sleeper])
    (found,) = processes.load_started(tmp_path)
    assert found.child is None
    assert (found.site, found.pid) == ("north", sleeper.pid)
    assert processes.running(tmp_path) == ["north"]
    assert processes.stop_started(tmp_path) == ["north"]
    assert not sleeper.alive()
    assert processes.running(tmp_path) == []
    assert not (tmp_path / processes.STATE_FILE).exists()


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    assert processes.load_started(tmp_path) == []
    assert processes.stop_started(tmp_path) == []


def test_a_broken_state_file_is_an_error_not_a_guess(tmp_path: Path) -> None:
    (tmp_path / processes.STATE_FILE).write_text('{"daemons": [{"site": "north"}]}')
    with pytest.raises(LocalError, match="Stop the daemons by hand"):
        processes.load_started(tmp_path)


def test_last_words_are_the_end_of_the_log(sleeper: DaemonProcess) -> None:
    assert sleeper.last_words(2) == "two\nthree"
    sleeper.log.unlink()
    assert "cannot be read" in sleeper.last_words()


def test_overrides_meant_for_one_site_do_not_reach_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSIPSEG_STATE_DIR", "/nowhere")
    env = processes._environment()
    assert "GOSSIPSEG_STATE_DIR" not in env
    assert env["PATH"] == os.environ["PATH"]
    assert env["OMP_NUM_THREADS"] == "1"
