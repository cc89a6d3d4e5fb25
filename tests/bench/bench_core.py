"""The pure core under load: `python tests/bench/bench_core.py` prints JSON.

`events_per_s`: events a thousand nodes handle in one second of CPU time, network simulation included
and (core only) without it. `messages_per_site_s`: at 10, 100 and 1,000 sites, WAN preset, everybody
known to everybody; it must be flat.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from gossipseg.core.events import Event
from gossipseg.core.node import NodeState
from tests.sim.simulator import Net, Simulator


def cpu(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


class StepClock:
    """Adds up the CPU time spent inside NodeState.step."""

    def __init__(self) -> None:
        self.seconds, self.steps, self._step = 0.0, 0, NodeState.step

    def __enter__(self) -> StepClock:
        def timed(node: NodeState, event: Event, now: float) -> list[object]:
            start = time.process_time()
            out = self._step(node, event, now)
            self.seconds += time.process_time() - start
            self.steps += 1
            return out  # type: ignore[return-value]

        NodeState.step = timed  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        NodeState.step = self._step  # type: ignore[method-assign]


def steady(n: int, seconds: float) -> dict[str, float]:
    """One federation: joined first, then measured with training, exchange and 1 % loss."""
    sim = Simulator(n, seed=n, net=Net(loss=0.01), cases=lambda i: 5 + i % 40, keep_notes=False)
    sim.start_all()
    join_cpu_s = cpu(lambda: sim.run(150))
    sent, steps = sum(sum(x.sent.values()) for x in sim.nodes.values()), sim.steps
    total_cpu_s = cpu(lambda: sim.run(150 + seconds))
    messages = sum(sum(x.sent.values()) for x in sim.nodes.values()) - sent
    return {
        "sites": n,
        "join_cpu_s": round(join_cpu_s, 2),
        "events": sim.steps - steps,
        "events_per_s": round((sim.steps - steps) / total_cpu_s),
        "messages_per_site_s": round(messages / n / seconds, 3),
        "wrong_views": len(sim.wrong_views()),
    }


def main() -> None:
    random.seed(0)
    federations = [steady(n, seconds) for n, seconds in ((10, 2000.0), (100, 400.0), (1000, 100.0))]
    sim = Simulator(300, seed=1, net=Net(loss=0.01), keep_notes=False)
    sim.start_all()
    sim.run(150)
    with StepClock() as clock:
        sim.run(450)
    rates = [f["messages_per_site_s"] for f in federations]
    report = {
        "schema": 1,
        "bench": "core",
        "core_events_per_s": round(clock.steps / clock.seconds),
        "federations": federations,
        "flatness": round(max(rates) / min(rates), 3),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
