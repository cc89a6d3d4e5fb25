"""A daemon put together from real files and not started: no port, no worker, no data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gossipseg.daemon.main import Daemon, load_config
from tests.e2e.federation import Federation, federation


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
    daemon.transport = daemon._transport()
    daemon.runtime = daemon._runtime()
    return daemon
