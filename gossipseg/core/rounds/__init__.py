"""Rounds under a rotating coordinator: one decision per round, by Paxos.

docs/design/why-consensus.md says why. Aggregation is the worker's.
"""
