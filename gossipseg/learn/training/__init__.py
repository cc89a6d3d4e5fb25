"""The order of a round: its steps, what comes in, what goes out.

What must not stand here: what one step or one merge does (engine, exchange).
"""
