"""What people and programs see of the daemon: logs, audit log, exchange table, metrics.

Nothing here decides anything.
"""
