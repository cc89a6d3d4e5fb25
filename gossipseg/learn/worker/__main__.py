"""The training process: `python -m gossipseg.learn.worker`, started by the daemon."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gossipseg.errors import (
    EXIT_CONFIG,
    EXIT_DATA,
    EXIT_FAILED,
    EXIT_OK,
    ConfigError,
    DataError,
    GossipsegError,
)
from gossipseg.learn import protocol
from gossipseg.learn.data import presence
from gossipseg.learn.data.memory import is_out_of_memory
from gossipseg.learn.worker.link import DaemonLink, StopRequested

if TYPE_CHECKING:
    from gossipseg.learn.params import WorkerSpec

TOLD = 120
"""Characters of what torch says of it: it is long."""


def main() -> int:
    """Serve the daemon on the socket named in the environment; the exit code."""
    # The terminal's Ctrl-C and systemd's SIGTERM reach the whole group: the daemon alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its font cache is nobody's last word
    if int(os.environ.get("RANK", "0")) != 0:
        print("a site trains in one process: only rank 0 works", file=sys.stderr)
        return EXIT_OK
    path = os.environ.get(protocol.SOCKET_ENV)
    if not path:
        print(f"{protocol.SOCKET_ENV} is not set: this process is started by gossipsegd.", file=sys.stderr)
        return EXIT_CONFIG
    try:
        link = DaemonLink(Path(path))
    except GossipsegError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return _serve(link)


def _serve(link: DaemonLink) -> int:
    spec: WorkerSpec | None = None
    try:
        spec = _configured(link)
        link.send(protocol.Preparing("loading torch and MONAI", 0.0))
        from gossipseg.learn.worker.session import serve  # heavy: only once the daemon has been greeted

        serve(link, spec)
    except StopRequested:
        return EXIT_OK
    except GossipsegError as e:
        print(e, file=sys.stderr)
        link.send(_away(e, spec) or protocol.Fatal(_kind(e), str(e)))
        return e.exit_code
    except Exception as e:
        if is_out_of_memory(e):
            print(_no_memory(e), file=sys.stderr)
            return EXIT_FAILED
        if isinstance(e, OSError) and (fatal := _away(e, spec)) is not None:
            link.send(fatal)  # of reading an image, while its share went away
            return EXIT_DATA
        raise
    return EXIT_OK


def _configured(link: DaemonLink) -> WorkerSpec:
    from gossipseg.learn.settings import read_spec  # pydantic: not needed before the daemon has spoken

    order = link.order()
    if not isinstance(order, protocol.Configure):
        raise ConfigError("the daemon's first message is not Configure", remedy="Restart the daemon.")
    return read_spec(order.spec)


def _kind(error: GossipsegError) -> protocol.FatalKind:
    if isinstance(error, ConfigError):
        return "config"
    return "data" if isinstance(error, DataError) else "local"


def _away(error: Exception, spec: WorkerSpec | None) -> protocol.Fatal | None:
    """Where the cause is that the data are not there now."""
    if spec is None or isinstance(error, ConfigError):
        return None
    found = presence.behind(error, Path(str(spec.data.get("path", "."))))
    return protocol.Fatal("away", presence.waiting(found)) if found else None


def _no_memory(error: BaseException) -> str:
    """One line, short enough for the daemon to tell it whole."""
    text = " ".join(str(error).split())[:TOLD] or type(error).__name__
    return (
        f"not enough memory ({text}). Choose a smaller training.batch_size, task.patch_size or network in "
        "peers.yaml (at all sites), or give it more"
    )


if __name__ == "__main__":
    sys.exit(main())
