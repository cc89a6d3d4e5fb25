"""Whether this site is well, and what to do where it is not.

This package observes and explains. The core decides what follows for peers.
"""
