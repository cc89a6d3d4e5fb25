"""What every training stands on: the network, a step, losses, the optimizer, precision, a run's state.

What must not stand here: models of other sites, and the order of a round.
"""
