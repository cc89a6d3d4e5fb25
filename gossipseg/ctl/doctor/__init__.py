"""The checks of `gossipctl check`: each yields findings, none changes anything.

`whereabouts` also serves every command whose daemon does not answer.
"""
