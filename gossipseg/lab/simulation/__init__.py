"""One run: a federation in one process and in virtual time."""
