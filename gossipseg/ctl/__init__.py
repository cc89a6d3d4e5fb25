"""gossipctl: what an operator asks of a site, one command or one group of like commands a module.

From the floor up: `output`; `doctor`, the checks of `check`; `context`, which all commands share; the
commands; `main`, which imports only the one that was named. `peersfile` edits peers.yaml.
What must not stand here: torch, or a second source of what a daemon knows.
"""
