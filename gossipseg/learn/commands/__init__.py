"""The programs behind `gossipctl check`, `evaluate`, `predict` and `export`, each its own process.

What must not stand here: what another package could use.
"""
