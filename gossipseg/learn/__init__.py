"""Training and predicting: what one worker process does, and the commands that use a trained model.

From the floor up: `data`, `evaluation`, `oneshot`, `engine`, `privacy`, `deploy`, `exchange`, `training`,
`worker`; `commands` stands beside them. Outside this package only `protocol` and `params` are open to
everybody: both load no torch. `bundle` does not move: exported bundles name it. What must not stand here:
peers, sockets to other sites, signatures.
"""
