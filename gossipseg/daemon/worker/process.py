"""The worker's process: its start, its socket, its exits and its restarts.

A worker that dies or makes no progress is restarted from its last checkpoint, after growing pauses. After
MAX_QUICK_DEATHS deaths without a finished round in between, training has failed. The site stays a member. The
worker is then tried again every FAILED_RETRY_S, and when an operator asks (`gossipctl reload`). While the
data are away (a share that is not mounted) no worker is started, and no death is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from gossipseg import surroundings
from gossipseg.children import directory, environment, python_module
from gossipseg.daemon.worker import memory_kills
from gossipseg.errors import LocalError
from gossipseg.learn import protocol
from gossipseg.learn.params import WorkerSpec

MAX_QUICK_DEATHS = 5
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
FIRST_WAIT_S = 2.0
"""First pause while data are away; doubled each time, up to MAX_BACKOFF_S."""
FAILED_RETRY_S = 600.0
MAX_SOCKET_PATH_BYTES = 107
MAX_LOG_BYTES = 4 << 20
"""A larger worker.log is set aside as worker.1.log when a worker starts."""
LAST_WORDS_S = 2.0
"""How long the messages of a worker that has ended are still read."""
UNREADY_STOP_S = 1.0
"""Seconds that a worker may take to stop before it is ready: imports may be slow."""
UNREADY = ("starting", "waiting", "restarting", "failed")
"""States in which a running worker is not ready yet."""
UNWELL = ("waiting", "restarting", "failed")
"""States that are a reason for concern."""
WORKER_COMMAND = python_module("gossipseg.learn.worker")


class ProcessHost(Protocol):
    """Receives the worker's messages and learns of its exits."""

    def on_worker_message(self, message: protocol.FromWorker) -> None: ...

    def on_worker_lost(self, reason: str, final: bool) -> None: ...

    def on_worker_waiting(self, reason: str) -> None: ...


async def _nothing() -> str:
    return ""


@dataclass(slots=True)
class ProcessStatus:
    """What a user may see of the worker."""

    state: str = "starting"
    """starting | ready | training | aggregating | waiting | restarting | failed | stopped"""
    pid: int | None = None
    restarts: int = 0
    reason: str = ""


class WorkerSupervisor:
    """Keeps one worker running. `clock` gives monotonic seconds; `command` is executed.

    `obstacle` says why no worker can be started now, or ""; `kills` reads the kernel's counters.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        owner: ProcessHost,
        *,
        socket_path: Path,
        stuck_after_s: float,
        clock: Callable[[], float],
        command: Sequence[str] = WORKER_COMMAND,
        first_backoff_s: float = FIRST_BACKOFF_S,
        first_wait_s: float = FIRST_WAIT_S,
        obstacle: Callable[[], Awaitable[str]] = _nothing,
        kills: Callable[[], memory_kills.Kills] = memory_kills.read,
    ) -> None:
        self.status = ProcessStatus()
        self._first_wait_s, self._obstacle, self._kills = first_wait_s, obstacle, kills
        self._command, self._first_backoff_s = tuple(command), first_backoff_s
        self._spec, self._owner, self._clock = spec, owner, clock
        self._socket_path = socket_path
        self._stuck_after_s = stuck_after_s
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._server: asyncio.Server | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._paused = self._stopping = self._busy = self._running = self._was_ready = False
        self._orders = 0
        """Orders beside rounds that it has not answered yet."""
        self._fatal: protocol.Fatal | None = None
        self._cause = ""
        self._log_begins = 0
        """Why this site killed the worker; "" if it did not."""
        self._last_sign_of_life = clock()
        self._quick_deaths = self._waits = 0
        self._wake, self._ended = asyncio.Event(), asyncio.Event()

    def send(self, message: protocol.ToWorker) -> None:
        """Send the worker an order; dropped without a worker (its Ready asks for orders again)."""
        if isinstance(message, protocol.SetPaused):
            self._paused = message.paused
        if self._writer is None:
            return
        if isinstance(message, protocol.StartRound | protocol.Aggregate):
            self._busy = True
            self.status.state = "training" if isinstance(message, protocol.StartRound) else "aggregating"
        elif isinstance(message, protocol.SwapOrder | protocol.PersonalOrder):
            self._orders += 1
        self._last_sign_of_life = self._clock()
        self._writer.write(protocol.encode(message))

    def relist(self, sites: Sequence[str]) -> None:
        """The federation's sites for the next start."""
        self._spec = replace(self._spec, listed=list(sites))

    def try_again(self) -> None:
        """End the pause before the next start: an obstacle may have been removed."""
        if self.status.state in UNWELL:
            self._quick_deaths = 0
            self._wake.set()

    async def run(self) -> None:
        """Start the worker and keep it running until `stop`."""
        self._running = True
        folder = os.open(self._socket_path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self._server = await self._listening(folder)
            while not self._stopping:
                await self._live(folder)
        finally:
            os.close(folder)
            self._ended.set()

    async def _listening(self, folder: int) -> asyncio.Server:
        self._socket_path.unlink(missing_ok=True)
        address = socket_address(self._socket_path, folder)
        server = await asyncio.start_unix_server(self._connected, address, limit=protocol.MAX_LINE_BYTES)
        self._socket_path.chmod(0o600)
        return server

    async def _live(self, folder: int) -> None:
        """Run one worker, or check once whether one can run; then pause."""
        if reason := await self._hindered():
            self._wait(reason)
        else:
            reason = await self._one_life(folder)
            if self._stopping:
                return
            self._died(reason)
        await self._pause()

    async def _hindered(self) -> str:
        """Why no worker can be started now; "" also during the stop."""
        asked = asyncio.ensure_future(self._obstacle())
        while not (asked.done() or self._stopping):
            woken = asyncio.create_task(self._wake.wait())
            await asyncio.wait({asked, woken}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            self._forget_wake()
        if not self._stopping:
            return asked.result()
        asked.cancel()
        return ""

    async def stop(self, timeout_s: float) -> None:
        """Ask the worker to checkpoint and exit; kill it when it has not by then.

        The owner has received all its messages before this returns.
        """
        self._stopping = True
        self._wake.set()
        self.send(protocol.Stop())
        if self._writer is None:  # it has not been told what to do yet: there is nothing to save
            self._kill(self._process)
        if self.status.state in UNREADY:
            timeout_s = min(timeout_s, UNREADY_STOP_S)
        if self._running:
            try:
                await asyncio.wait_for(self._ended.wait(), timeout_s)
            except TimeoutError:
                self._kill(self._process)
                await self._ended.wait()
        if self._server is not None:
            self._server.close()
        self._socket_path.unlink(missing_ok=True)
        self.status.state, self.status.pid = "stopped", None

    async def _one_life(self, folder: int) -> str:
        """Start a worker, wait for its exit and its last messages; returns why it ended."""
        self._fatal, self._busy, self._cause, self._conversation = None, False, "", None
        self._orders = 0
        log = Path(self._spec.state_dir) / "worker.log"
        before = memory_kills.Recent(self._kills(), self._clock())
        try:
            self._process = process = await self._start(folder, log)
        except OSError as e:  # no memory or no process left, a read-only disk: it may pass
            return f"the worker could not be started: {e}"
        if self._stopping:
            self._kill(process)
        self.status.pid, self._last_sign_of_life = process.pid, self._clock()
        watch = asyncio.create_task(self._watch(process, before))
        try:
            code = await process.wait()
        finally:
            watch.cancel()
        if self._conversation is not None:  # its last messages, above all Fatal, may still be unread
            await asyncio.wait({self._conversation}, timeout=LAST_WORDS_S)
        self._writer, self.status.pid = None, None
        return self._why(code, before.kills, log)

    async def _start(self, folder: int, log: Path) -> asyncio.subprocess.Process:
        """A new worker, with its own TMPDIR: what an earlier one left there is removed."""
        state_dir = Path(self._spec.state_dir)
        await asyncio.to_thread(surroundings.empty_tmp, state_dir)
        env = surroundings.of_worker(environment(), state_dir)
        env[protocol.SOCKET_ENV] = socket_address(self._socket_path, folder)
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name("worker.1.log"))
        with log.open("ab") as stderr:
            self._log_begins = stderr.tell()
            return await asyncio.create_subprocess_exec(
                *self._command, env=env, cwd=directory(), stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr, stderr=stderr, start_new_session=True, pass_fds=(folder,),
            )  # fmt: skip

    def _why(self, code: int, before: memory_kills.Kills, log: Path) -> str:
        if self._fatal is not None:
            return self._fatal.message
        if self._cause:
            return self._cause
        if code == -signal.SIGKILL:
            how = memory_kills.blamed(before, self._kills())
        else:
            how = f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"
        return f"worker ended: {how}; its last log line: {last_line(log, self._log_begins)}"

    def _died(self, reason: str) -> None:
        """Count the death, and say whether it was the last for now.

        A fatal error is final at the worker's first start, when an operator watches. Later the cause may pass
        (a disk error): the worker is restarted as after any other death.
        """
        if self._fatal is not None and self._fatal.kind == "away":
            self._wait(reason)
            return
        self._quick_deaths += 1
        hopeless = self._fatal is not None and (not self._was_ready or self._fatal.kind == "config")
        final = hopeless or self._quick_deaths >= MAX_QUICK_DEATHS
        self.status.state, self.status.reason = ("failed" if final else "restarting"), reason
        self._owner.on_worker_lost(reason, final)

    def _wait(self, reason: str) -> None:
        """Pause while the data are away, which is not the worker's fault. Reported once, and when the reason
        changes."""
        new = self.status.state != "waiting" or self.status.reason != reason
        self._waits = 1 if self.status.state != "waiting" else self._waits + 1
        self.status.state, self.status.reason = "waiting", reason
        if new:
            self._owner.on_worker_waiting(reason)

    async def _pause(self) -> None:
        match self.status.state:
            case "waiting":
                delay = min(MAX_BACKOFF_S, self._first_wait_s * 2 ** min(self._waits - 1, 16))
            case "failed":
                delay = FAILED_RETRY_S
            case _:
                delay = min(MAX_BACKOFF_S, self._first_backoff_s * 2 ** max(0, self._quick_deaths - 1))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), delay)
        self._forget_wake()
        self.status.restarts += not self._stopping and self.status.state != "waiting"

    def _forget_wake(self) -> None:
        if not self._stopping:
            self._wake.clear()

    async def _watch(self, process: asyncio.subprocess.Process, counters: memory_kills.Recent) -> None:
        """Kill a worker that is busy and has sent nothing for too long."""
        while True:
            if counters.due(now := self._clock()):
                counters.read(self._kills(), now)
            silent_s = self._clock() - self._last_sign_of_life
            working = self._busy or self._orders or self.status.state in UNREADY
            at_work = working and not self._paused
            if at_work and silent_s > self._stuck_after_s:
                self._cause = f"no progress for {silent_s:.0f} s, killed"
                self._kill(process)
                return
            await asyncio.sleep(max(0.05, min(5.0, self._stuck_after_s / 4)))

    @staticmethod
    def _kill(process: asyncio.subprocess.Process | None) -> None:
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process, self._conversation = self._process, asyncio.current_task()
        self._writer = writer
        if self._stopping:
            self.send(protocol.Stop())
        else:
            self.send(protocol.Configure(asdict(self._spec)))
        if self._paused:
            self.send(protocol.SetPaused(True))
        try:
            while line := await reader.readline():
                try:
                    message = protocol.decode(line)
                except protocol.JobError as e:
                    self._cause = f"the worker sent an invalid message and was stopped: {e}"
                    break
                self._received(message)
        except ConnectionError:
            pass  # it died with an order unread; its exit code will say more
        except ValueError as e:
            self._cause = f"the worker sent a line that is too long and was stopped: {e}"
        finally:
            if self._writer is writer:
                self._writer = None
            writer.close()
            # Its exit follows; one that hung up and lives on would never be given another round.
            asyncio.get_running_loop().call_later(0 if self._cause else LAST_WORDS_S, self._kill, process)

    def _received(self, message: protocol.Message) -> None:
        self._last_sign_of_life = self._clock()
        match message:
            case protocol.Ready():
                self.status.state, self.status.reason, self._was_ready = "ready", "", True
            case protocol.RoundDone():
                self._busy, self._quick_deaths, self.status.state = False, 0, "ready"
            case protocol.AggregateDone():
                self._busy, self.status.state = False, "ready"
            case protocol.Fatal():
                self._fatal = message
        if isinstance(message, protocol.SwapReport | protocol.PersonalReport):
            self._orders = max(0, self._orders - 1)
        if isinstance(message, protocol.FromWorker):
            self._owner.on_worker_message(message)


def last_line(log: Path, begins: int = 0, limit: int = 300) -> str:
    """The last non-empty line of a log file after its first `begins` bytes, shortened."""
    try:
        with log.open("rb") as f:
            f.seek(max(begins, log.stat().st_size - 4096))
            lines = [line for line in f.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "none"
    return lines[-1].strip()[-limit:] if lines else "none"


def signal_name(number: int) -> str:
    """A signal's name, such as SIGSEGV; real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def socket_address(path: Path, folder: int) -> str:
    """The path itself; or, where it is too long for a unix socket, a path through its open `folder`.

    The child gets the folder under the same number. So nothing outside the state directory is needed or left.
    """
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return str(path)
    return f"/proc/self/fd/{folder}/{path.name}"


def require_state_dir(path: Path) -> None:
    """Make the state directory. Raises LocalError when it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as e:
        raise LocalError(
            f"{path}: the state directory cannot be written: {e.strerror}. "
            "Give it to the daemon's user, or set state_dir in site.yaml."
        ) from None
