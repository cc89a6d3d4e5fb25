"""Digests of seeded simulations: two versions of the core that do the same print the same lines.

python -m tests.bench.measure_sims
"""

from __future__ import annotations

import hashlib

from tests.sim.simulator import Net, Simulator


def main() -> None:
    for exchange in ("gossip", "rounds"):
        for sites, seed in ((3, 0), (5, 1), (8, 2), (12, 3)):
            sim = Simulator(
                sites, seed=seed, exchange=exchange, trace=True, net=Net(loss=0.05, duplication=0.05)
            )
            sim.start_all()
            sim.run(300.0)
            sim.crash(sorted(sim.nodes)[0])
            sim.run(600.0)
            sim.start(sorted(sim.nodes)[0])
            sim.run(1800.0)
            digest = hashlib.blake2b(sim.trace().encode(), digest_size=8).hexdigest()
            print(f"{exchange} {sites} sites, seed {seed}: {digest}", flush=True)


if __name__ == "__main__":
    main()
