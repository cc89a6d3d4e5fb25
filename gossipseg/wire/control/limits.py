"""Limits shared by server and client: the number of rows asked for, the size of an answer."""

from __future__ import annotations

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_DOCUMENT_BYTES = 64 << 20
REACH_TIMEOUT_S = 50.0
"""Time to dial all sites, and to be dialled by them, with the longest time for each step."""
