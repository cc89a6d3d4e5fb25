"""What a worker finds around it where the machine has no user's name, home, /tmp or writable root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg import surroundings
from gossipseg.surroundings import USER, empty_tmp, named, of_worker

BARE = {"PATH": "/usr/bin"}


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_known", lambda: False)


def test_a_user_without_an_entry_gets_a_name(unknown: None) -> None:
    assert named(BARE) == {**BARE, "USER": USER, "LOGNAME": USER}
    for name in ("USER", "LOGNAME"):
        assert named({**BARE, name: "anna"}) == {**BARE, name: "anna"}, "whoever has one keeps it"


def test_a_known_user_keeps_the_environment() -> None:
    assert surroundings._known() and named(BARE) == BARE


@pytest.mark.parametrize("home", [None, "", "/proc/nowhere", "relative"])
def test_without_a_home_all_lies_below_the_state_directory(tmp_path: Path, home: str | None) -> None:
    env = of_worker(BARE if home is None else {**BARE, "HOME": home}, tmp_path)
    for key in ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        folder = Path(env[key])
        assert folder.is_relative_to(tmp_path) and folder.stat().st_mode & 0o777 == 0o700, key


def test_what_can_be_used_is_used(tmp_path: Path) -> None:
    home, state = tmp_path / "home", tmp_path / "state"
    home.mkdir()
    state.mkdir()
    given = {**BARE, "HOME": str(home), "MPLCONFIGDIR": str(home / "mpl"), "TMPDIR": "/var/tmp"}
    env = of_worker(given, state)
    assert env == {**given, "TMPDIR": str(state / "tmp")}
    broken = of_worker({**given, "MPLCONFIGDIR": "/proc/mpl"}, state)
    assert broken["MPLCONFIGDIR"] == str(state / "cache/matplotlib")


def test_a_tmp_that_others_could_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir(mode=0o777)
    of_worker(BARE, tmp_path)
    assert (tmp_path / "tmp").stat().st_mode & 0o777 == 0o700


def test_what_a_kill_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp/tmpabc/deep").mkdir(parents=True)
    (tmp_path / "tmp/tmpabc/deep/file").write_text("x")
    (tmp_path / "tmp/file").write_text("x")
    (tmp_path / "kept").write_text("x")
    (tmp_path / "tmp/link").symlink_to(tmp_path / "kept")
    (tmp_path / "tmp/folder").symlink_to(tmp_path)
    empty_tmp(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == [] and (tmp_path / "kept").exists()


def test_behind_a_link_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/others").write_text("x")
    (tmp_path / "state").mkdir()
    (tmp_path / "state/tmp").symlink_to(tmp_path / "elsewhere")
    empty_tmp(tmp_path / "state")
    assert of_worker(BARE, tmp_path / "state")["TMPDIR"] == str(tmp_path / "state/tmp")
    assert (tmp_path / "elsewhere/others").exists()
    empty_tmp(tmp_path / "not there")


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory of a user without an entry, below a folder that all can reach."""
    folder = Path(tempfile.mkdtemp(prefix="gossipseg-around-"))
    folder.chmod(0o755)
    (folder / "state").mkdir()
    os.chown(folder / "state", 54321, 54321)
    yield folder / "state"
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be a user without an entry")
def test_python_finds_a_user_a_home_and_a_tmp(state: Path) -> None:
    """As Python itself sees it, under a number that no passwd file has."""
    code = """
import getpass, os, pathlib, sys, tempfile
sys.path.insert(0, sys.argv[1])
from gossipseg.surroundings import of_worker
os.setgroups([]); os.setgid(54321); os.setuid(54321)
env = of_worker({}, pathlib.Path(sys.argv[2]))
os.environ.clear(); os.environ.update(env)
print(getpass.getuser(), pathlib.Path.home(), tempfile.mkdtemp())
"""
    root = Path(surroundings.__file__).parents[1]
    command = [sys.executable, "-S", "-c", code, str(root), str(state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    user, home, tmp = done.stdout.split()
    assert user == USER and home == str(state / "home") and Path(tmp).parent == state / "tmp"
