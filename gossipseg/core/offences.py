"""Which refusals are offences of the peer that sent the model.

An honest site may be busy, late, cut off, or know an older list: none of that is held against it.
"""

from __future__ import annotations

from gossipseg.core.types import ModelRef, Site

OFFENCES = frozenset(
    {
        "manifest_forged",
        "manifest_replayed",
        "manifest_mismatch",
        "manifest_federation",
        "manifest_contract",
        "manifest_stranger",
        "other_run",
        "other_round",
        "other_model",
        "absurd_attempt",
        "beyond_budget",
        "too_large",
        "schema_mismatch",
        "unreadable",
        "bad_format",
        "hash_mismatch",
        "oversize",
    }
)
"""Of messages and streams. Anything else is none: busy, disk_full, incomplete, manifest_missing …"""
MAKERS = frozenset(
    {
        "manifest_stranger",
        "manifest_forged",
        "manifest_replayed",
        "schema_mismatch",
        "unreadable",
        "bad_format",
        "too_large",
    }
)
"""Of a global model these are its maker's doing, or this site's view, not of the one that passes it on."""
EXCUSED = frozenset(
    {
        "worker_lost",
        "not_visited",
        "no_exchange",
        "no_memory",
        "disk_full",
        "unreadable",
        "missing",
        "not_here",
        "io_error",
        "cancelled",
    }
)
"""Of the worker's verdicts: this site's own trouble. Any other is an offence, or one of DICE."""
DICE = frozenset({"diverged", "guard", "dice", "dice_gate", "unrelated", "validation", "worse"})
"""A model that merely does worse on this site's images, or has grown away: other sites' images differ."""


def is_offence(reason: str, frm: Site, model: ModelRef | None = None) -> bool:
    """Whether a refused message or stream of `frm` counts against it.

    A global model that `frm` passes on in good faith may be refused here: lists and keys are not reloaded
    everywhere at once, limits are each site's own, and its maker may have told each of us something else.
    """
    manifest = model.manifest if model is not None else None
    passed_on = manifest is not None and manifest.kind == "global" and manifest.maker != frm
    if passed_on and reason in MAKERS:
        return False
    return reason in OFFENCES


def verdict_is_offence(reason: str) -> bool:
    """Whether a model that failed the worker's checks counts against the site that sent it."""
    return reason not in EXCUSED and reason not in DICE
