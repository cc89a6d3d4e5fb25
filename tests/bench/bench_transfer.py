"""A model from site to site: the wire against a raw TLS socket, and what it costs in memory. Prints JSON.

Sender and receiver are two processes on this machine. Both ways do the same work: mutual TLS, the file read
in pieces of 1 MiB, at the other side written to disk, hashed with blake3, fsynced and renamed; the clock
stops when the sender has the confirmation. The raw way is a plain loop over blocking sockets with one copy
into a 1 MiB buffer. Runs of the two alternate; the ratio is that of the medians of their throughput. It is
taken in the given folder (where fsync is part of the time) and in memory (/dev/shm), where only the wire is
left.
cpu_s is the processor time of both ends for one model: on a machine that others use it tells more than the
clock, and the ratio of the clocks flatters the way that has more threads.
Memory: how far the resident set of either process rises above what it was after a first small model, sampled
every 10 ms while a 500 MB model passes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from gossipseg.core.messages import Reply, Request
from gossipseg.core.types import ModelRef
from gossipseg.errors import PeerRefused
from gossipseg.store import ModelStore
from gossipseg.store.models import hash_file
from gossipseg.trust import Identity, create_identity
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.transport import PeerEndpoint

MB, MIB = 10**6, 1 << 20
AIM_RATIO, AIM_GROWTH_MB = 0.7, 64.0


class Intake:
    """A daemon's way of taking a model, without the daemon: everything is promised."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store

    async def on_request(self, peer: str, body: Request) -> Reply:
        raise PeerRefused(peer, "not_ready")

    async def push_offset(self, peer: str, model: ModelRef) -> int:
        with self.store.partial(model.hash, peer, size_bytes=model.size_bytes) as partial:
            return partial.offset

    async def on_push(self, peer: str, model: ModelRef, offset: int, chunks: AsyncIterator[bytes]) -> None:
        with self.store.partial(model.hash, peer, size_bytes=model.size_bytes) as partial:
            async for chunk in chunks:
                await asyncio.to_thread(partial.write, chunk)
            await asyncio.to_thread(partial.finish, model.hash, model.size_bytes)


class Resident:
    """Samples this process's resident set; `growth_mb` since begin()."""

    def __init__(self) -> None:
        self._base = self._peak = 0
        self._stop = threading.Event()

    def begin(self) -> None:
        self._base = self._peak = self._now()
        threading.Thread(target=self._sample, daemon=True).start()

    def end(self) -> float:
        self._stop.set()
        return (max(self._peak, self._now()) - self._base) / MB

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self._peak = max(self._peak, self._now())

    @staticmethod
    def _now() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- the two ways, each end a process


class WireReceiver:
    def __init__(self, folder: Path, store: Path, _: str) -> None:
        peers = other(folder, "alpha", "127.0.0.1:1")
        self.transport = GrpcTransport(
            "beta", listen="127.0.0.1:0", identity=identity(folder, "beta"), peers=peers
        )
        self.intake = Intake(ModelStore(store))

    async def start(self) -> str:
        await self.transport.start(self.intake)
        return self.transport.address

    async def close(self) -> None:
        await self.transport.close()


class WireSender:
    def __init__(self, folder: Path, _: Path, address: str) -> None:
        peers = other(folder, "beta", address)
        self.transport = GrpcTransport(
            "alpha", listen="127.0.0.1:0", identity=identity(folder, "alpha"), peers=peers
        )

    async def start(self) -> str:
        await self.transport.start(Intake(ModelStore(Path(tempfile.mkdtemp()))))
        return self.transport.address

    async def send(self, path: Path, hash: str, size: int) -> None:
        await self.transport.push("beta", ModelRef(hash, size, 1, 1, 1), path, 600.0)

    async def close(self) -> None:
        await self.transport.close()


class RawReceiver:
    def __init__(self, folder: Path, store: Path, _: str) -> None:
        self.context = tls(folder, "beta", "alpha", ssl.PROTOCOL_TLS_SERVER)
        self.store = ModelStore(store)
        self.listener = socket.create_server(("127.0.0.1", 0))

    async def start(self) -> str:
        threading.Thread(target=self._serve, daemon=True).start()
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        plain, _ = self.listener.accept()
        with self.context.wrap_socket(plain, server_side=True) as line:
            buffer = memoryview(bytearray(MIB))
            while fill(line, buffer[:72]) == 72:
                hash, size = bytes(buffer[:64]).decode(), struct.unpack("!Q", buffer[64:72])[0]
                with self.store.partial(hash, "alpha", size_bytes=size) as partial:
                    while partial.offset < size:
                        n = fill(line, buffer[: min(MIB, size - partial.offset)])
                        partial.write(buffer[:n])  # type: ignore[arg-type]
                    partial.finish(hash, size)
                line.sendall(b"1")

    async def close(self) -> None:
        self.listener.close()


class RawSender:
    def __init__(self, folder: Path, _: Path, address: str) -> None:
        host, port = address.split(":")
        plain = socket.create_connection((host, int(port)))
        self.line = tls(folder, "alpha", "beta", ssl.PROTOCOL_TLS_CLIENT).wrap_socket(plain)

    async def start(self) -> str:
        return ""

    async def send(self, path: Path, hash: str, size: int) -> None:
        self.line.sendall(hash.encode() + struct.pack("!Q", size))
        with path.open("rb", buffering=0) as f:
            while block := f.read(MIB):
                self.line.sendall(block)
        assert self.line.recv(1) == b"1"

    async def close(self) -> None:
        self.line.close()


ROLES = {
    "wire-receive": WireReceiver,
    "wire-send": WireSender,
    "raw-receive": RawReceiver,
    "raw-send": RawSender,
}


def identity(folder: Path, site: str) -> Identity:
    return Identity.load(folder / site / "key.pem", folder / site / "cert.pem")


def other(folder: Path, site: str, address: str) -> dict[str, PeerEndpoint]:
    return {site: PeerEndpoint(site, address, ((folder / site / "cert.pem").read_bytes(),))}


def tls(folder: Path, me: str, peer: str, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
    context.load_cert_chain(folder / me / "cert.pem", folder / me / "key.pem")
    context.load_verify_locations(folder / peer / "cert.pem")
    return context


def fill(line: ssl.SSLSocket, buffer: memoryview) -> int:
    done = 0
    while done < len(buffer) and (n := line.recv_into(buffer[done:])):
        done += n
    return done


async def serve(role: str, folder: Path, store: Path, address: str) -> None:
    """One end: says its address, then does what the lines on its standard input ask."""
    end: Any = ROLES[role](folder, store, address)
    print(json.dumps({"address": await end.start()}), flush=True)
    resident = Resident()
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *arguments = json.loads(line)
        answer = {}
        if command == "send":
            begin = time.perf_counter()
            await end.send(Path(arguments[0]), arguments[1], arguments[2])
            answer["seconds"] = time.perf_counter() - begin
        elif command == "begin":
            resident.begin()
        elif command == "cpu":
            answer["seconds"] = time.process_time()
        else:
            answer["growth_mb"] = resident.end()
        print(json.dumps(answer), flush=True)
    await end.close()


# ---------------------------------------------------------------- measuring


class End:
    """The process of one end."""

    def __init__(self, role: str, folder: Path, store: Path, address: str = "") -> None:
        command = [sys.executable, __file__, "--role", role, "--dir", str(folder), "--store", str(store)]
        self._process = subprocess.Popen(
            [*command, "--address", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._answer()["address"]

    def __call__(self, *command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextlib.contextmanager
def ends(way: str, folder: Path) -> Iterator[tuple[End, End]]:
    store = folder / f"{way}-store"
    receiver = End(f"{way}-receive", folder, store)
    sender = End(f"{way}-send", folder, store, receiver.address)
    try:
        yield sender, receiver
    finally:
        sender.close()
        receiver.close()


def make_model(folder: Path, size: int) -> tuple[str, str, int]:
    path = folder / f"model-{size}"
    with path.open("wb") as f:
        for at in range(0, size, MIB):
            f.write(os.urandom(min(MIB, size - at)))
    return str(path), hash_file(path)[0], size


def throughput(folder: Path, size: int, runs: int) -> dict[str, Any]:
    """MB/s of both ways, alternating, each over a connection that is already there."""
    model, small = make_model(folder, size), make_model(folder, MIB)
    rates: dict[str, list[float]] = {"wire": [], "raw": []}
    cpu_s = {}
    with ends("wire", folder) as wire, ends("raw", folder) as raw:
        ways = {"raw": raw, "wire": wire}
        for name, (sender, _) in ways.items():
            sender("send", *small)
            cpu_s[name] = -processor_time(ways[name])
        for _ in range(runs):
            for name, (sender, _) in ways.items():
                rates[name].append(size / MB / sender("send", *model)["seconds"])
                (folder / f"{name}-store" / f"{model[1]}.safetensors").unlink()
        for name in ways:
            cpu_s[name] = (cpu_s[name] + processor_time(ways[name])) / runs
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "wire_mb_per_s": round(medians["wire"]),
        "raw_tls_mb_per_s": round(medians["raw"]),
        "ratio": round(medians["wire"] / medians["raw"], 2),
        "wire_cpu_s": round(cpu_s["wire"], 3),
        "raw_tls_cpu_s": round(cpu_s["raw"], 3),
        "runs_wire": [round(r) for r in rates["wire"]],
        "runs_raw": [round(r) for r in rates["raw"]],
    }


def processor_time(pair: tuple[End, End]) -> float:
    return sum(end("cpu")["seconds"] for end in pair)


def growth(folder: Path, size: int) -> dict[str, float]:
    """How far both ends' resident sets rise while a model of `size` bytes passes over the wire."""
    model, small = make_model(folder, size), make_model(folder, MIB)
    with ends("wire", folder) as (sender, receiver):
        sender("send", *small)
        sender("begin")
        receiver("begin")
        sender("send", *model)
        return {
            "sender_mb": round(sender("end")["growth_mb"], 1),
            "receiver_mb": round(receiver("end")["growth_mb"], 1),
        }


def measure(base: Path | None, model_mb: int, large_mb: int, runs: int) -> dict[str, Any]:
    result: dict[str, Any] = {"benchmark": "transfer", "model_mb": model_mb, "large_mb": large_mb}
    places = {"disk": base, "memory": Path("/dev/shm")}
    for name, place in places.items():
        if place is not None and not place.is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=place) as temporary:
            folder = Path(temporary)
            for site in ("alpha", "beta"):
                create_identity(site, folder / site)
            result[name] = throughput(folder, model_mb * MB, runs)
            if name == "disk":
                result["growth"] = growth(folder, large_mb * MB)
    result["aims"] = {"ratio": AIM_RATIO, "growth_mb": AIM_GROWTH_MB}
    result["met"] = {
        "ratio": result["disk"]["ratio"] >= AIM_RATIO,
        "growth_mb": max(result["growth"].values()) < AIM_GROWTH_MB,
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="folder to work in (default: the system's temporary one)")
    parser.add_argument("--model-mb", type=int, default=125)
    parser.add_argument("--large-mb", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        asyncio.run(serve(options.role, options.dir, options.store, options.address))
    else:
        print(json.dumps(measure(options.dir, options.model_mb, options.large_mb, options.runs), indent=2))


if __name__ == "__main__":
    main()
