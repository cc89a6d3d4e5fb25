"""Membership of a large federation in virtual time: detection time, false accusations, messages per site.

Run it by hand: `python tests/bench/bench_membership.py [N]`. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

from gossipseg.core.membership.suspicion import minimum_timeout_s
from gossipseg.core.params import MembershipParams
from gossipseg.core.types import MemberState
from tests.sim.simulator import Net, Simulator

GONE = (MemberState.DEAD, MemberState.UNSEEN)
WARM_UP_S = 150.0


def grown(n: int, loss: float) -> Simulator:
    sim = Simulator(n, seed=n, net=Net(loss=loss), with_workers=False, keep_notes=False)
    sim.start_all(within_s=5.0)
    sim.run(WARM_UP_S)
    return sim


def messages(sim: Simulator) -> int:
    return sum(sum(node.sent.values()) for node in sim.nodes.values())


def steady(sim: Simulator, n: int) -> None:
    """Messages and accusations of a healthy federation over 60 s."""
    before, suspected, dead = messages(sim), sim.events["member_suspect"], sim.events["member_dead"]
    sim.run(sim.now + 60)
    print(f"  messages per site and second      {(messages(sim) - before) / n / 60:.3f}")
    print(f"  wrong views after {sim.now:.0f} s            {len(sim.wrong_views())} of {n * (n - 1)}")
    print(f"  healthy: suspicions, deaths        {sim.events['member_suspect'] - suspected}, "
          f"{sim.events['member_dead'] - dead}")  # fmt: skip


def detection(sim: Simulator, n: int, victims: int = 5) -> None:
    """Crash some; when the first, half and nearly all others take them for dead."""
    gone = [f"s{i * (n // victims):04d}" for i in range(victims)]
    dead_before, at = sim.events["member_dead"], sim.now
    for site in gone:
        sim.crash(site)
    watchers = [node.site for node in sim.up()]
    times: dict[str, dict[float, float]] = {site: {} for site in gone}
    while sim.now < at + 240 and any(0.999 not in t for t in times.values()):
        sim.run(sim.now + 1.0)
        for site, reached in times.items():
            share = sum(sim.believes(w, site) in GONE for w in watchers) / len(watchers)
            for mark in (1e-9, 0.5, 0.999):
                if share >= mark and mark not in reached:
                    reached[mark] = sim.now - at
    for mark, name in ((1e-9, "the first site"), (0.5, "half"), (0.999, "99.9 %")):
        known = [t[mark] for t in times.values() if mark in t]
        text = f"{statistics.median(known):.0f} s (worst {max(known):.0f} s)" if known else "not within 240 s"
        print(f"  a crash is known to {name:<14} {text}")
    wrongly = sim.events["member_dead"] - dead_before - sum(
        sim.believes(w, s) is MemberState.DEAD for w in watchers for s in gone
    )  # fmt: skip
    print(f"  others declared dead meanwhile     {max(0, wrongly)}")
    print(f"  shortest suspicion (WAN)           {minimum_timeout_s(n, MembershipParams()):.0f} s")


def starved(sim: Simulator, n: int, share: float = 0.05, for_s: float = 8.0, times: int = 4) -> None:
    """Loops that stand still again and again, as those of sites whose machine swaps."""
    up = [node.site for node in sim.up()]
    slow = set(up[:: max(1, round(1 / share))])
    suspected, dead = sim.events["member_suspect"], sim.events["member_dead"]
    for _ in range(times):
        for site in slow:
            sim.starve(site, for_s)
        sim.run(sim.now + for_s + 4)
    sim.run(sim.now + 60)
    print(f"  {len(slow)} loops stand still {times} x {for_s:.0f} s: suspicions "
          f"{sim.events['member_suspect'] - suspected} (views), deaths "
          f"{sim.events['member_dead'] - dead} (views)")  # fmt: skip
    print(f"  wrong views a minute later         {len(sim.wrong_views())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=2000)
    parser.add_argument("--loss", type=float, default=0.01)
    args = parser.parse_args()
    begin = time.perf_counter()
    print(f"{args.n} sites, WAN preset, {args.loss:.0%} loss of requests and of replies")
    sim = grown(args.n, args.loss)
    steady(sim, args.n)
    detection(sim, args.n)
    starved(sim, args.n)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  {sim.now:.0f} virtual seconds in {time.perf_counter() - begin:.0f} s, {peak_mib:.0f} MiB")


if __name__ == "__main__":
    main()
