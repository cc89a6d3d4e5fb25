"""A site under attack, in a process of its own: the real daemon but for its training worker.

Run as `python -m tests.attacks.victim SITE_YAML`. It says `listening ADDRESS`, then answers one line of
standard input with one line of JSON about itself, until the end of the input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from gossipseg import config as configuration
from gossipseg.core import events
from gossipseg.daemon.main import Daemon, load_config
from gossipseg.daemon.observe import logs
from gossipseg.wire.limits import PeerLimits

SCHEMA: dict[str, tuple[str, tuple[int, ...]]] = {"w": ("F16", (256, 256)), "b": ("F16", (16,))}


async def main(site_yaml: str) -> None:
    logs.setup("text", "warning")
    args = argparse.Namespace(
        config=site_yaml, set=[], listen="127.0.0.1:0", state_dir=None, rounds=None, device=None
    )
    daemon = Daemon(load_config(args), args)
    Path(daemon.config.site.state_dir).mkdir(exist_ok=True)
    daemon.assemble(PeerLimits(**json.loads(os.environ.get("VICTIM_LIMITS", "{}"))))
    runtime = daemon.runtime
    for kind in ("model", "update", "global"):
        runtime.intake.schemas = {**runtime.intake.schemas, kind: SCHEMA}
    await daemon.transport.start(runtime.intake)
    runtime.serve()
    runtime.inject(events.Start())
    contract = configuration.contract(daemon.config.federation, "signature")
    runtime.inject(events.WorkerReady(5, 50, 10, contract))
    print("listening", daemon.transport.address, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(about(daemon)), flush=True)
    await runtime.stop("the end")


def about(daemon: Daemon) -> dict[str, Any]:
    """What the tests look at."""
    node, store = daemon.runtime.node, daemon.runtime.store
    return {
        "rss_bytes": _kib("VmRSS") * 1024,
        "peak_bytes": _kib("VmHWM") * 1024,
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "tasks": len(asyncio.all_tasks()),
        "members": {name: member.state.value for name, member in node.members.items()},
        "models": len(store.list()),
        "disk_bytes": sum(p.stat().st_size for p in store.root.rglob("*") if p.is_file()),
        "waiting": daemon.runtime.intake.waiting,
        "queue": daemon.runtime.queued,
        "streams": len(daemon.transport.streams),
        "refused": node.count("refused"),
        "merged": node.count("merged"),
        "inbox": len(node.inbox),
        "quarantined": [name for name in node.members if node.quarantined(name)],
    }


def _kib(what: str) -> int:
    """Of this process alone: getrusage would tell the peak of whoever started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
