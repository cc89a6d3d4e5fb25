"""A daemon put together from real files: no worker, no data, and no port unless a test opens it.

What tests need of a runtime's inside stands here, once.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.daemon.control.service import Service
from gossipseg.daemon.main import Daemon, load_config
from gossipseg.daemon.runtime import Runtime
from gossipseg.errors import GossipsegError
from gossipseg.learn import protocol
from gossipseg.wire import documents as doc
from tests.e2e.federation import Federation, federation

READY = protocol.Ready(0, 0, 8, "net", {}, 1, "cpu", "no", {"training": 8})
"""The report of a worker that begins."""


@contextmanager
def files_only(folder: Path, *names: str) -> Iterator[Federation]:
    """The files of a federation, but for its images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.e2e.federation.write_data", lambda *_: None)
        with federation(folder, names, gossip={"warmup_rounds": 0}) as f:
            yield f


def daemon_of(f: Federation, name: str = "north") -> Daemon:
    """To be called in an event loop, because of gRPC."""
    f[name].folder.joinpath("state").mkdir(exist_ok=True)
    args = argparse.Namespace(
        config=str(f[name].config), set=[], listen=None, state_dir=None, rounds=None, device=None
    )
    daemon = Daemon(load_config(args), args)
    daemon.assemble()
    return daemon


@asynccontextmanager
async def served(runtime: Runtime) -> AsyncIterator[list[GossipsegError]]:
    """Its queues are served as `Runtime.start` has them served; yields what would have ended the daemon."""
    failures: list[GossipsegError] = []
    runtime.fail = failures.append  # type: ignore[method-assign]
    runtime.serve()
    try:
        yield failures
    finally:
        await runtime.end_tasks()
        await runtime.transport.close()


@asynccontextmanager
async def running(f: Federation) -> AsyncIterator[tuple[Runtime, list[GossipsegError]]]:
    """north's runtime, started; what would have ended the daemon is collected."""
    runtime = daemon_of(f).runtime
    async with served(runtime) as failures:
        runtime.inject(ev.Start())
        yield runtime, failures


async def settled(runtime: Runtime) -> None:
    """What the worker said is heard, and what the node made of it is done."""
    await runtime.settled()


async def saved(runtime: Runtime) -> None:
    """All that waits in the runtime's queue is done: states are on disk, and what waited for them is said."""
    await runtime.drained()


async def perform(runtime: Runtime, *effects: fx.Effect) -> None:
    """Carry these effects out, one after the other."""
    for effect in effects:
        await runtime._perform(effect)


def done(number: int, **changes: Any) -> protocol.RoundDone:
    """The report of a worker that has done a round."""
    return protocol.RoundDone(
        **{
            "round": number,
            "steps": number,
            "loss": 0.5,
            "terms": {},
            "dice_val": 0.5,
            "dice_val_local": None,
            "seconds": 1.0,
            **changes,
        }
    )


def service(runtime: Runtime) -> Service:
    """What answers gossipctl; nobody asks it for the identity, a stop or a reload."""
    nothing = {"identity": lambda: None, "stop": lambda _: None, "reload": lambda: ()}
    return Service(runtime, discovery=doc.DiscoveryStatus, **nothing)
