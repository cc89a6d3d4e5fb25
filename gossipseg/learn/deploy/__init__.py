"""Which model a site predicts with, and how it is loaded from a checkpoint.

What must not stand here: training steps.
"""
