"""`gossipctl pause`, `resume`, `leave` and `reload`: orders to the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_OK, LocalError

if TYPE_CHECKING:
    from gossipseg.wire.documents import OkDoc


def register(app: typer.Typer) -> None:
    for command in (pause, resume, leave, reload):
        app.command(command.__name__)(command)


def pause(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Hold training before its next step; the site stays a member."""
    with context.daemon(config, socket) as daemon:
        return _show(daemon.pause(), json)


def resume(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Resume training."""
    with context.daemon(config, socket) as daemon:
        return _show(daemon.resume(), json)


def leave(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Tell the other sites, write a checkpoint, end the daemon."""
    with context.daemon(config, socket) as daemon:
        return _show(daemon.leave(), json)


def reload(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Read peers.yaml again. A file with a mistake is refused, and the old list stays in force."""
    with context.daemon(config, socket) as daemon:
        return _show(daemon.reload(), json)


def _show(document: OkDoc, json: bool) -> int:
    if not document.ok:
        raise LocalError(document.message)
    if json:
        out.print_json(document.to_dict())
    else:
        print(document.message)
    return EXIT_OK
