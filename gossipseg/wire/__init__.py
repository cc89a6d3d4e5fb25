"""The wire between sites and to gossipctl. Imports nothing heavy."""

import os

# gRPC's C core would write every failed handshake and connection to stderr; our errors tell it better.
# It reads this once, when grpc is first imported, which is always after this package.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
