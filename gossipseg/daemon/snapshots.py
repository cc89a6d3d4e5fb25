"""The core's snapshot back from the JSON that the state file holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from gossipseg.core import effects
from gossipseg.core.quarantine import PeerRecordSnapshot
from gossipseg.core.types import Manifest, ModelRef, Proposal

T = TypeVar("T")


def restore(doc: dict[str, Any]) -> effects.Snapshot:
    """A snapshot back from its JSON; fields that this version does not know are left out."""
    known = {k: v for k, v in doc.items() if k in effects.Snapshot.__dataclass_fields__}
    known["inbox"] = tuple(
        effects.InboxEntry(e["frm"], _model(e["model"]), e["arrived_round"]) for e in doc.get("inbox", ())
    )
    known["rounds"] = _rounds_record(doc.get("rounds"))
    known["counters"] = tuple((what, site, n) for what, site, n in doc.get("counters", ()))
    known["seen"] = tuple(_record(effects.SeenManifest, s) for s in doc.get("seen", ()))
    known["conduct"] = tuple(
        _record(PeerRecordSnapshot, {**c, "ages_s": tuple(c["ages_s"])}) for c in doc.get("conduct", ())
    )
    return effects.Snapshot(**known)


def _record(kind: Callable[..., T], doc: dict[str, Any]) -> T:
    """A dataclass of these fields, without those that it does not have."""
    fields = inspect.signature(kind).parameters
    return kind(**{key: value for key, value in doc.items() if key in fields})


def _model(doc: dict[str, Any]) -> ModelRef:
    manifest = doc.get("manifest")
    return _record(
        ModelRef, {**doc, "manifest": _record(Manifest, manifest) if manifest is not None else None}
    )


def _rounds_record(doc: dict[str, Any] | None) -> effects.RoundsRecord | None:
    if doc is None:
        return None
    known = {k: v for k, v in doc.items() if k in effects.RoundsRecord.__dataclass_fields__}
    for key in ("committed", "accepted"):
        if (raw := known.get(key)) is not None:
            known[key] = _record(
                Proposal,
                {
                    **raw,
                    "model": _model(raw["model"]),
                    "contributors": tuple(raw["contributors"]),
                    "absent": tuple((site, reason) for site, reason in raw["absent"]),
                },
            )
    if known.get("update") is not None:
        known["update"] = _model(known["update"])
    return effects.RoundsRecord(**known)
