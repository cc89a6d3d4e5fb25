"""What gossipctl may ask of a running daemon, and the documents it receives."""
