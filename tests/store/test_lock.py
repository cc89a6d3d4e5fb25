"""One holder at a time, across real processes, and no longer than it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gossipseg.errors import EXIT_TEMPFAIL, AlreadyRunning, LocalError
from gossipseg.store import DirectoryLock

HOLDER = """
import sys
from pathlib import Path
from gossipseg.store import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""

FORKER = """
import os, sys
from pathlib import Path
from gossipseg.store import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:
    print("held", flush=True)  # from here: a fork that has not run yet has given nothing back
    sys.stdin.read()   # outlives its parent, as a data loader may
    os._exit(0)
sys.stdin.read()
"""


def holder(path: Path, script: str = HOLDER) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"held\n"
    return child


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


def test_the_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    child = holder(path)
    try:
        with pytest.raises(AlreadyRunning, match=f"process {child.pid} holds") as e:
            DirectoryLock(path).acquire()
        assert e.value.exit_code == EXIT_TEMPFAIL
        assert str(path) in str(e.value) and "state_dir" in str(e.value)
    finally:
        end(child)


def test_kill_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    end(holder(path))
    with DirectoryLock(path) as lock:
        assert lock.held and path.read_text() == f"{os.getpid()}\n"


def test_a_forked_child_does_not_keep_its_dead_parents_lock(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    child = holder(path, FORKER)
    child.kill()
    child.wait()
    try:
        with DirectoryLock(path) as lock:  # the grandchild is alive: its standard input is still open
            assert lock.held
    finally:
        child.stdin.close()
        child.stdout.close()


def test_release_and_take_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = DirectoryLock(path), DirectoryLock(path)
    first.acquire()
    with pytest.raises(AlreadyRunning, match="this process"):
        first.acquire()
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        second.acquire()
    first.release()
    first.release()
    with second:
        assert not first.held


def test_no_access_is_not_already_running(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be locked") as e:
        DirectoryLock(tmp_path / "missing" / "lock").acquire()
    assert not isinstance(e.value, AlreadyRunning)
