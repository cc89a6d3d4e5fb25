"""Between the pure core and what surrounds it: the same code for the daemon and for the lab.

What belongs here: configuration into setups, effects into the worker's orders, its reports into events, and
what is checked of a message or a model before the core hears of it. What must not: clocks, processes,
sockets, torch.
"""
