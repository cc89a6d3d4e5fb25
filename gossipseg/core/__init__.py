"""What a site decides: one state machine, `NodeState.step(event, now)`, which returns effects.

From the floor up: values (`types`, `events`, `effects`, `messages`, `params`, `context`) and what reads only
them (`manifests`, `offences`, `budget`, `site_pool`); `membership`; `gossip` and `rounds` side by side above
it. Beside them stand what follows from offences (`enforcement`, `quarantine`), `worker_state` and `wellness`.
`assembly` and `node` join all of it. What must not stand here: clocks, threads, files, sockets, logging, or
any package beyond the standard library.
"""
