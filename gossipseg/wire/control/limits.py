"""What server and client agree on: how many rows are asked for, how large an answer may be."""

from __future__ import annotations

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_DOCUMENT_BYTES = 64 << 20
REACH_TIMEOUT_S = 50.0
"""Dialling all sites, and being dialled by them, with the longest time for each step."""
