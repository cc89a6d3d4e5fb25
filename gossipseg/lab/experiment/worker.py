"""A process that does runs: plans as JSON lines in, progress and results as JSON lines out.

runs.py starts `python -m gossipseg.lab.experiment.worker`, which ends with it: closed standard input means
that the parent is gone.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from gossipseg.errors import EXIT_FAILED, EXIT_OK, GossipsegError

TELL_EVERY_S = 0.25


def main() -> int:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started this process
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()

    import torch

    from gossipseg.lab.simulation.training import DataCache

    torch.set_num_threads(1)
    cache = DataCache()
    while True:
        line = orders.get()
        if not line:
            return EXIT_OK
        _serve(json.loads(line), cache, out)


def _listen(orders: queue.Queue[str]) -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(EXIT_OK)


def _serve(order: dict[str, Any], cache: Any, out: TextIO) -> None:
    def say(kind: str, **fields: Any) -> None:
        print(json.dumps({"type": kind, **fields}), file=out, flush=True)

    began, progress = time.perf_counter(), _Progress(say)
    try:
        rows = do(order, cache, progress)
    except GossipsegError as e:
        say("failed", message=str(e), exit_code=e.exit_code)
    except Exception as e:
        traceback.print_exc()
        say("failed", message=f"unexpectedly: {type(e).__name__}: {e}", exit_code=EXIT_FAILED)
    else:
        say("done", rows=rows, seconds=time.perf_counter() - began)


def do(order: dict[str, Any], cache: Any, progress: Any) -> list[dict[str, Any]]:
    """Do one run. Raises GossipsegError."""
    from gossipseg.lab.plan.run_plans import RunPlan
    from gossipseg.lab.plan.variants import LONE_PAIR
    from gossipseg.lab.simulation import federation, lone_pair, pooled

    plan = RunPlan(**order)
    if plan.name == pooled.NAME:
        return pooled.run(plan, cache, progress)
    if plan.name == LONE_PAIR:
        return lone_pair.run(plan, cache, progress)
    return federation.run(plan, cache, progress)


class _Progress:
    """Adds up local steps, and reports them from time to time."""

    def __init__(self, say: Any) -> None:
        self._say, self._done, self._told_s = say, 0, 0.0

    def __call__(self, steps: int, text: str) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._told_s >= TELL_EVERY_S:
            self._told_s = now
            self._say("progress", done=self._done, text=text)


if __name__ == "__main__":
    sys.exit(main())
