"""gossiplab: comparisons of algorithms, in which many sites run in one process and in virtual time.

From the floor up: `plan`, `report`, `simulation`, `experiment`; `main` holds the commands. Sites run the real
core, bridge and trainers, over a network in memory. What must not stand here: another training loop,
sockets between sites, waits in real time.
"""
