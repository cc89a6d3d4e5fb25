"""The exchange of models between two sites: who is drawn, what is offered, what waits or is swapped.

Only decisions live here, as everywhere in core; files and packets are the daemon's and the wire's.
"""
