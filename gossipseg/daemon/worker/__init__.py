"""The training worker as the daemon sees it: its process, the dialogue with it, and who killed it."""
