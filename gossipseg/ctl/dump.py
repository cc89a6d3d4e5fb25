"""`gossipctl dump`: the daemon's recording of its core, written to a file for a bug report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_OK, LocalError


def register(app: typer.Typer) -> None:
    app.command("dump")(dump)


def dump(
    to: Annotated[Path, typer.Option("-o", "--out", help="The file to write; it must not be there yet.")],
    config: context.ConfigOption = None,
    socket: context.SocketOption = None,
    json: context.JsonOption = False,
) -> int:
    """Write the latest events of this site's core to a file; they can be replayed step by step.

    It contains names and addresses of sites, rounds, hashes and Dice; no key, no image, no file name of one.
    """
    with context.daemon(config, socket) as daemon:
        document = daemon.dump()
    if not document.steps:
        raise LocalError(f"there is no recording: {document.problem or 'nothing has happened yet'}.")
    try:
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as f:
            f.write(document.recording)
    except OSError as e:
        raise LocalError(f"{to}: cannot be written: {e.strerror}. Name a new file with --out.") from e
    if json:
        size = to.stat().st_size
        out.print_json({"schema": 1, "kind": "dump", "file": str(to), "steps": document.steps, "bytes": size})
    else:
        print(f"{to}: {document.steps} steps. Replay them: python -m gossipseg.daemon.recording.replay {to}")
    return EXIT_OK
