"""gossipsegd: the imperative shell around the core, with its clock, disk, processes and sockets.

From the floor up: `health` and `recording`; `observe`; `peers`; `worker`; `control`. Beside them, `main`
begins and ends a daemon, and `runtime` gives events to the core and carries out its effects. `listening`,
`notify`, `reload` and `saves` do one of their tasks each. What must not stand here: decisions about peers or
rounds (core), gRPC (wire), torch.
"""
