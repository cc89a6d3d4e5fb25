"""The control socket with a real server and a real client: answers, failures in words, paths, kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from gossipseg.errors import AlreadyRunning, ConfigError, DaemonUnreachable, LocalError
from gossipseg.wire import control_pb2
from gossipseg.wire import documents as doc
from gossipseg.wire.control import DEFAULT_LIMIT, MAX_LIMIT, ControlClient, ControlServer


class Daemon:
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.watchers = 0
        self.watch_ended = threading.Event()
        self.never = asyncio.Event()

    async def status(self) -> doc.StatusDoc:
        return doc.StatusDoc(site="north", loss=0.5)

    async def peers(self, limit: int) -> doc.PeersDoc:
        return doc.PeersDoc(tuple(doc.PeerRow(f"site-{n}") for n in range(limit)))

    async def exchanges(self, limit: int) -> doc.ExchangesDoc:
        self.asked.append(("exchanges", limit))
        return doc.ExchangesDoc()

    async def models(self) -> doc.ModelsDoc:
        await self.never.wait()
        return doc.ModelsDoc()

    async def rounds(self) -> doc.RoundsDoc:
        return doc.RoundsDoc(
            exchange="rounds", committed=3, absent=(doc.RoundRow("west", "left_out", "dead"),)
        )

    async def events(self, limit: int, since: int) -> doc.EventsDoc:
        return doc.EventsDoc(({"seq": since + 1, "limit": limit},))

    async def pause(self) -> doc.OkDoc:
        return doc.OkDoc(True, "paused")

    async def resume(self) -> doc.OkDoc:
        raise LocalError("the worker failed for good: restart the daemon")

    async def leave(self) -> doc.OkDoc:
        raise ZeroDivisionError("a mistake")

    async def reload(self) -> doc.OkDoc:
        raise ConfigError("unknown key", file="peers.yaml", key="sitess", remedy="Did you mean `sites`?")

    async def quarantine(self) -> doc.QuarantineDoc:
        return doc.QuarantineDoc(3, 60.0, (doc.QuarantineRow("west", "quarantined", "manifest_forged", 9.0),))

    async def lift_quarantine(self, site: str) -> doc.OkDoc:
        return doc.OkDoc(True, f"lifted {site}")

    async def watch(self) -> AsyncIterator[doc.WatchDoc]:
        self.watchers += 1
        try:
            for step in range(1_000_000):
                yield doc.WatchDoc(doc.StatusDoc(step=step))
                await asyncio.sleep(0.001)
        finally:
            self.watchers -= 1
            self.watch_ended.set()


def serving(path: Path, use: Callable[[Daemon], None]) -> None:
    """Run `use` in a thread while a server answers at `path`."""

    async def main() -> None:
        daemon = Daemon()
        server = ControlServer(path, daemon)
        await server.start()
        try:
            await asyncio.wait_for(asyncio.to_thread(use, daemon), 30)
        finally:
            await server.close()

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_every_question_has_its_answer(path: Path) -> None:
    def use(daemon: Daemon) -> None:
        with ControlClient(path) as client:
            assert client.status() == doc.StatusDoc(site="north", loss=0.5)
            assert len(client.peers(3).peers) == 3 and len(client.peers().peers) == MAX_LIMIT
            assert len(client.peers(10**9).peers) == MAX_LIMIT
            client.exchanges(7)
            client.exchanges()
            assert daemon.asked == [("exchanges", 7), ("exchanges", DEFAULT_LIMIT)]
            assert client.events(5, since=1 << 40).events == ({"seq": (1 << 40) + 1, "limit": 5},)
            assert client.pause() == doc.OkDoc(True, "paused")
            assert client.quarantine().sites[0].reason == "manifest_forged"
            assert client.lift_quarantine("west") == doc.OkDoc(True, "lifted west")

    serving(path, use)


def test_errors_of_the_daemon_reach_the_operator(path: Path, caplog) -> None:
    def use(daemon: Daemon) -> None:
        with ControlClient(path) as client:
            with pytest.raises(LocalError, match=r"^the worker failed for good: restart the daemon$"):
                client.resume()
            with pytest.raises(LocalError, match=r"peers\.yaml: sitess: unknown key.*Did you mean `sites`"):
                client.reload()
            with pytest.raises(LocalError, match="ZeroDivisionError: a mistake"):
                client.leave()
            assert client.pause().ok  # and it goes on answering

    serving(path, use)
    assert "a control request failed" in caplog.text and "ZeroDivisionError" in caplog.text


def test_a_daemon_that_does_not_answer(path: Path) -> None:
    def use(daemon: Daemon) -> None:
        with (
            ControlClient(path, timeout_s=0.2) as client,
            pytest.raises(DaemonUnreachable, match=r"did not answer within 0\.2 s"),
        ):
            client.models()

    serving(path, use)


def test_watch_streams_until_either_side_goes(path: Path) -> None:
    def use(daemon: Daemon) -> None:
        with ControlClient(path) as client:
            frames = client.watch()
            assert [next(frames).status.step for _ in range(5)] == [0, 1, 2, 3, 4]
            assert daemon.watchers == 1
            frames.close()
            assert daemon.watch_ended.wait(10) and daemon.watchers == 0

    serving(path, use)


def test_watch_ends_with_the_daemon(path: Path) -> None:
    seen: list[BaseException] = []

    def watch(started: threading.Event) -> None:
        with ControlClient(path) as client:
            try:
                for _ in client.watch():
                    started.set()
            except LocalError as e:
                seen.append(e)

    started = threading.Event()
    thread = threading.Thread(target=watch, args=(started,))

    def use(daemon: Daemon) -> None:
        thread.start()
        assert started.wait(10)

    serving(path, use)
    thread.join(10)
    assert isinstance(seen[0], DaemonUnreachable) and "went away" in str(seen[0])


def test_only_this_user_may_open_it_and_it_goes_with_the_daemon(path: Path) -> None:
    before = os.umask(0)
    try:

        def use(daemon: Daemon) -> None:
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode) and mode & 0o777 == 0o600

        serving(path, use)
        assert os.umask(0) == 0, "the server must give the umask back"
    finally:
        os.umask(before)
    assert not path.exists()


def test_it_is_never_open_to_others_not_even_for_a_moment(path: Path, monkeypatch) -> None:
    modes = []
    real = Path.chmod
    monkeypatch.setattr(Path, "chmod", lambda p, m: (modes.append(p.stat().st_mode & 0o777), real(p, m))[1])
    serving(path, lambda daemon: None)
    assert modes == [0o600]


def test_nobody_there(path: Path) -> None:
    with ControlClient(path) as client:
        for ask in (client.status, lambda: next(client.watch())):
            with pytest.raises(DaemonUnreachable, match=r"No such file.*gossipsegd --config") as e:
                ask()
            assert str(path) in str(e.value) and e.value.exit_code == 69


def test_the_directory_is_not_there_either(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="gossipsegd --config"):
        ControlClient(tmp_path / ("x" * 120) / "control.sock").status()
    with pytest.raises(DaemonUnreachable, match="gossipsegd --config"):
        ControlClient(tmp_path / "missing" / "control.sock").status()
    for directory in ("missing", "x" * 120):
        with pytest.raises(LocalError, match=r"missing|xxx"):
            serving(tmp_path / directory / "control.sock", lambda daemon: None)


@pytest.mark.parametrize(
    "deep",
    ["d" * 60 + "/" + "e" * 60 + "/" + "f" * 200, "a space/100%41/é#?;[x]", "..data"],
    ids=["long", "odd", "plain"],
)
def test_any_directory_will_do(tmp_path: Path, deep: str) -> None:
    directory = tmp_path / deep
    directory.mkdir(parents=True)
    path = directory / "control.sock"

    def use(daemon: Daemon) -> None:
        assert stat.S_ISSOCK(path.stat().st_mode) and path.stat().st_mode & 0o777 == 0o600
        with ControlClient(path) as client:
            assert client.status().site == "north"
        with pytest.raises(AlreadyRunning):
            asyncio.run(ControlServer(path, daemon).start())

    serving(path, use)
    assert list(directory.iterdir()) == []
    with ControlClient(path) as client, pytest.raises(DaemonUnreachable):
        client.status()


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()
    path = directory / "control.sock"
    ControlClient(path).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        ControlClient(path).close()
    (directory / "control.sock").write_bytes(b"")
    for _ in range(10):
        with pytest.raises(LocalError):
            asyncio.run(ControlServer(path, Daemon()).start())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_an_impossible_file_name_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"Set control_socket in site\.yaml"):
        asyncio.run(ControlServer(tmp_path / ("n" * 120), Daemon()).start())


SERVER = """
import asyncio, sys
from pathlib import Path
from gossipseg.wire.control import ControlServer
async def main():
    server = ControlServer(Path(sys.argv[1]), None)
    await server.start()
    print("listening", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", SERVER, path], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"listening\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def test_a_killed_daemons_socket_is_replaced_and_a_living_ones_is_not(path: Path) -> None:
    with other_process(path) as child:
        with pytest.raises(AlreadyRunning, match="another daemon answers"):
            serving(path, lambda daemon: None)
        assert path.exists()
        child.kill()
        child.wait()
        assert path.exists(), "kill -9 leaves the file"
        with (
            ControlClient(path) as client,
            pytest.raises(DaemonUnreachable, match=r"refused.*start it again"),
        ):
            client.status()

        def use(daemon: Daemon) -> None:
            with ControlClient(path) as client:
                assert client.status().site == "north"

        serving(path, use)


def test_a_file_in_the_way_is_not_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(LocalError, match="is no socket"):
        serving(path, lambda daemon: None)
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(LocalError, match="is no socket"):
        serving(path, lambda daemon: None)


def test_a_daemon_of_another_version(path: Path) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{path}")
    answers = {
        "Status": b'{"schema":2,"kind":"status"}',
        "Peers": b'{"schema":1,"kind":"peers","peers":[{"x":1}]}',
    }

    def handler(text: bytes):

        return grpc.unary_unary_rpc_method_handler(
            lambda query, context: control_pb2.Document(json=text),
            response_serializer=control_pb2.Document.SerializeToString,
        )

    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "gossipseg.wire.Control", {k: handler(v) for k, v in answers.items()}
            ),
        )
    )
    server.start()
    try:
        with ControlClient(path) as client:
            with pytest.raises(LocalError, match="reads schema 1 only"):
                client.status()
            assert client.peers().peers == (doc.PeerRow(),)
            with pytest.raises(LocalError, match="does not know this request"):
                client.pause()
    finally:
        server.stop(0).wait()


def test_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, gossipseg.wire.control\n"
        "print([m for m in ('torch', 'monai', 'numpy', 'pydantic', 'zeroconf', 'cryptography', 'yaml') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
