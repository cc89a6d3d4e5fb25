"""The checks of `gossipctl check`: each yields findings, none changes anything."""
