"""Personal models that travel: who is asked for one, what is served, what is held.

Only decisions live here, as everywhere in core; files and packets are the daemon's and the wire's.
"""
