"""Between the pure core and its surroundings: the same code for the daemon and for the lab.

What belongs here: configuration into setups, effects into the worker's orders, its reports into events, and
the checks of a message or a model before the core receives it. What must not: clocks, processes, sockets,
torch.
"""
