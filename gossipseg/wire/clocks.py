"""How far clocks may differ, and how a difference is told; the same words in the daemon and in gossipctl."""

from __future__ import annotations

CLOCK_TOLERANCE_S = 60.0
"""Clocks that differ by more are told to the administrators."""


def clock_text(site: str, ahead_s: float) -> str:
    """By how much a site's clock differs from this one's, in words."""
    size = abs(ahead_s)
    amount = (
        f"{size:.0f} s" if size < 600 else f"{size / 60:.0f} min" if size < 7200 else f"{size / 3600:.1f} h"
    )
    return f"{site}'s clock is {amount} {'ahead of' if ahead_s > 0 else 'behind'} this one's"
