"""gossipctl: what an operator asks of a site, one command or one family of commands a module.

From the floor up: `output` and `context`, which all commands share; the commands; `main`, which imports only
the one that was named. `doctor` holds the checks of `check`, `peersfile` edits peers.yaml, `whereabouts`
tells why no daemon answers. What must not stand here: torch, or a second source of what a daemon knows.
"""
