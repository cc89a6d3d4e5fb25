"""The open swap, and the counts of the others, as documents."""

from __future__ import annotations

from gossipseg.core.gossip.open_swap import Stage
from gossipseg.core.node import NodeState
from gossipseg.core.types import Phase
from gossipseg.daemon.runtime import Runtime
from gossipseg.wire import documents as doc


def open_swap(r: Runtime) -> doc.SwapRow:
    """The swap that is open now, as the table knows it; after a restart, as the core does."""
    swap = r.node.swap
    if swap is None:
        return doc.SwapRow()
    row = r.swaps.rows.get((swap.id.asker, swap.id.number))
    if row is not None:
        return row
    return doc.SwapRow(
        asker=swap.id.asker,
        number=swap.id.number,
        peer=swap.partner,
        direction="out" if swap.asker else "in",
        state="committed" if swap.stage.value == "committed" else "open",
        part=swap.part,
        weight=swap.weight,
    )


def swaps_wait(r: Runtime) -> str:
    """Why this site makes no swaps now, or why the open one waits; "" where neither is so."""
    swap = r.node.swap
    if r.node.phase is Phase.PAUSED:
        committed = swap is not None and swap.stage is Stage.COMMITTED
        return "it is decided, and applied once training goes on" if committed else ""
    if r.node.swaps_wait:
        return f"none before {r.window_opens}, by transfers.windows"
    return ""


def swap_counts(node: NodeState) -> doc.SwapCounts:
    """How this site's swaps ended."""
    return doc.SwapCounts(
        mixed=node.count("mixed"),
        copied=node.count("copied"),
        kept=node.count("kept"),
        dropped=node.count("swap_dropped"),
        in_doubt=node.count("swap_in_doubt"),
        lost=node.count("swap_lost"),
    )
