"""Differential privacy: DP-SGD with its account, and the clipped, noised update.

What must not stand here: encryption and signatures (wire, trust).
"""
