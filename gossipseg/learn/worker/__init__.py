"""The training process: its connection to the daemon, its orders, and the end of its life.

What must not stand here: training itself.
"""
