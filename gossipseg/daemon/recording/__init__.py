"""The recording and replay of the core's events."""
