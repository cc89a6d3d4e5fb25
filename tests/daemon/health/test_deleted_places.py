"""Places that are deleted under the running daemon: told of, and made again."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gossipseg.daemon.health.deleted_places import Places
from gossipseg.errors import LocalError
from gossipseg.store import DirectoryLock
from gossipseg.wire.control import ControlClient, ControlServer
from tests.ctl.conftest import Answers


class Socket:
    """A control socket that a test takes away."""

    def __init__(self, path: Path) -> None:
        self.path, self.intact, self.renewed = path, True, 0
        self.error: LocalError | None = None

    async def renew(self) -> None:
        if self.error is not None:
            raise self.error
        self.intact, self.renewed = True, self.renewed + 1


async def test_a_deleted_socket_is_made_again_and_told_of_for_an_hour(tmp_path: Path) -> None:
    now, notes = [0.0], []
    places = Places(tmp_path, lambda e, **f: notes.append(e), clock=lambda: now[0])
    socket = Socket(tmp_path / "control.sock")
    await places.look(socket)
    assert places.lost == {}
    socket.intact = False
    await places.look(socket)
    assert socket.renewed == 1 and "made again at" in places.lost["control_socket_gone"]
    now[0] = 3599
    await places.look(socket)
    assert notes == ["control_socket_gone"] and places.lost
    now[0] = 3601
    await places.look(socket)
    assert places.lost == {}
    socket.intact, socket.error = False, LocalError("no room")
    await places.look(socket)
    await places.look(socket)
    assert "cannot be made again: no room" in places.lost["control_socket_gone"] and len(notes) == 2


async def test_a_deleted_state_directory_is_told_of_and_made_again_with_its_lock(tmp_path: Path) -> None:
    state, notes = tmp_path / "state", []
    state.mkdir()
    places, socket = Places(state, lambda e, **f: notes.append(e)), Socket(state / "control.sock")
    shutil.rmtree(state)
    await places.look(socket)
    assert "was deleted under the running daemon" in places.lost["state_dir_gone"]
    assert state.stat().st_mode & 0o777 == 0o700 and notes == ["state_dir_gone"]
    with pytest.raises(LocalError):
        DirectoryLock(state / "daemon.lock").acquire()
    await places.look(socket)
    assert notes == ["state_dir_gone"]


async def test_a_deleted_state_directory_that_a_worker_made_anew_counts_as_deleted(
    tmp_path: Path,
) -> None:
    state, notes = tmp_path / "state", []
    state.mkdir()
    places = Places(state, lambda e, **f: notes.append(e))
    shutil.rmtree(state)
    (state / "outbox").mkdir(parents=True)
    for _ in range(2):
        await places.look(Socket(state / "control.sock"))
        assert "was deleted under the running daemon" in places.lost["state_dir_gone"]
        assert places.lost["state_dir_gone"].endswith("; the folder that is there now was made since")
    with pytest.raises(LocalError):
        DirectoryLock(state / "daemon.lock").acquire()
    assert notes == ["state_dir_gone"]


async def test_a_state_directory_that_cannot_be_made_again(tmp_path: Path) -> None:
    state = tmp_path / "mount" / "state"
    state.mkdir(parents=True)
    places = Places(state, lambda e, **f: None)
    (tmp_path / "mount").rename(tmp_path / "away")
    await places.look(Socket(state / "control.sock"))
    assert "another folder" in places.lost["state_dir_gone"] and not (tmp_path / "mount").exists()
    (tmp_path / "mount").mkdir()
    await places.look(Socket(state / "control.sock"))
    assert not state.exists(), "the disk may be away, and this its mount point"


async def test_another_folder_in_its_place(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    places = Places(state, lambda e, **f: None)
    state.rename(tmp_path / "old")
    state.mkdir()
    await places.look(Socket(state / "control.sock"))
    assert "is another folder than at the start" in places.lost["state_dir_gone"]
    assert not list(state.iterdir()), "nothing is written into what may be an unmounted disk"


async def test_a_state_directory_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was away for a moment: what was said of it is over, whatever stood in its place."""
    state, notes = tmp_path / "state", []
    state.mkdir()
    places, socket = Places(state, lambda e, **f: notes.append(e)), Socket(state / "control.sock")
    state.rename(tmp_path / "old")
    await places.look(socket)
    assert "was deleted" in places.lost["state_dir_gone"]
    shutil.rmtree(state)
    await places.look(socket)
    assert state.is_dir(), "made again, again"
    shutil.rmtree(state)
    (tmp_path / "old").rename(state)
    await places.look(socket)
    assert places.lost == {} and notes == ["state_dir_gone", "state_dir_back"]
    with monkeypatch.context() as m:
        m.setattr(
            "gossipseg.daemon.health.deleted_places.Path.stat",
            raising(OSError(errno.EIO, "Input/output error")),
        )
        await places.look(socket)
    assert places.lost["state_dir_gone"].endswith("cannot be reached: Input/output error")
    await places.look(socket)
    assert places.lost == {}


def raising(error: Exception) -> Callable[..., None]:
    def fails(*_: object, **__: object) -> None:
        raise error

    return fails


async def test_the_real_socket_is_made_again(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "control.sock", Answers())
    await server.start()
    assert server.intact
    server.path.unlink()
    assert not server.intact
    await server.renew()
    assert server.intact and server.path.stat().st_mode & 0o777 == 0o600

    def ask() -> str:
        with ControlClient(server.path) as client:
            return client.status().site

    import asyncio

    assert await asyncio.to_thread(ask) == "north"
    await server.close()
    assert not server.path.exists()
