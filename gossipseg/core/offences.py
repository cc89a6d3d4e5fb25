"""Which refusals are offences of the peer that sent the model.

An honest site may be busy, late, cut off, or know an older list: none of these is an offence.
"""

from __future__ import annotations

from gossipseg.core.types import ModelRef, Site

OFFENCES = frozenset(
    {
        "manifest_forged",
        "terms_forged",
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
"""Reasons of refused messages and streams that are offences. Others are not: busy, disk_full, incomplete,
manifest_missing …"""
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
"""Reasons that blame a global model's maker, or this site's view. The site that forwards the model is not to
blame."""
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
"""Worker verdicts that are this site's own trouble. Any other verdict is an offence, or one of DICE."""
DICE = frozenset({"diverged", "guard", "dice", "dice_gate", "unrelated", "validation", "worse"})
"""Verdicts on a model that only does worse on this site's images, or has diverged: other sites' images
differ."""


def is_offence(reason: str, frm: Site, model: ModelRef | None = None) -> bool:
    """Whether a refused message or stream of `frm` counts as its offence.

    A site may forward a global model in good faith that is refused here. Lists and keys are not reloaded
    everywhere at once. Limits are each site's own. The maker may have sent different statements to different
    sites.
    """
    manifest = model.manifest if model is not None else None
    passed_on = manifest is not None and manifest.kind == "global" and manifest.maker != frm
    if passed_on and reason in MAKERS:
        return False
    return reason in OFFENCES


def verdict_is_offence(reason: str) -> bool:
    """Whether a model that failed the worker's checks counts as an offence of its sender."""
    return reason not in EXCUSED and reason not in DICE
