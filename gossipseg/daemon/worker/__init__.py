"""The training worker as the daemon sees it: its process, its orders, its exits."""
