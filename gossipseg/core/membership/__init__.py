"""Membership: SWIM with Lifeguard's local health. Records, their dissemination, and the failure detector.

This package decides what a record means. Gossip, rounds and enforcement decide what follows from it.
"""
