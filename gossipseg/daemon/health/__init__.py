"""Whether this site is well, and what to do where it is not.

Looks and words; what follows from them for peers is decided in core.
"""
