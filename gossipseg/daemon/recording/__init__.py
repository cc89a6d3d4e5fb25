"""The core's events as they happened, written down and played again."""
