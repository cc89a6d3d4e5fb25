"""How far clocks may differ, and the text of a difference; the same words in the daemon and in gossipctl."""

from __future__ import annotations

CLOCK_TOLERANCE_S = 60.0
"""Largest difference of clocks, in seconds, that is not reported to administrators."""


def clock_text(site: str, ahead_s: float) -> str:
    """The difference between a site's clock and this one's, in words."""
    size = abs(ahead_s)
    amount = (
        f"{size:.0f} s" if size < 600 else f"{size / 60:.0f} min" if size < 7200 else f"{size / 3600:.1f} h"
    )
    return f"{site}'s clock is {amount} {'ahead of' if ahead_s > 0 else 'behind'} this one's"
