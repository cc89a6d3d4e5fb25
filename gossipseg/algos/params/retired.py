"""Settings that earlier versions had and this one has not.

A key that stands at the value by which this version goes changes nothing: files of earlier versions hold such
lines, and sites of earlier versions count them into what they compare. Any other value is refused, with what
to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SAME_AS_WITHOUT: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {"gossip_average": {"private_norm": False}}
)
"""Algorithm → its retired keys, each with the value that is the same as leaving it out. Sites of earlier
versions know them and agree with this one."""

OF_EARLIER_GCML: Mapping[str, object] = MappingProxyType(
    {"merge": "average", "resident_rounds": 1, "private_norm": False, "lambda_ramp_visits": 5}
)
"""Keys of GCML in its earlier form, in which an incoming model trained for a round as a guest, each with its
default."""

_MEASURED = "it brought nothing when it was measured (docs/research/tables.md)"
_PERSONAL = (
    "Leave it out: unless training.personal says none, a site trains a model of its own beside the shared "
    "one, and predicts with both."
)


def retired_settings(name: object) -> dict[str, object]:
    """The retired keys of an algorithm, as an earlier version has them that does what this one does."""
    return dict(SAME_AS_WITHOUT.get(name, {})) if isinstance(name, str) else {}


def droppable_settings(name: object) -> dict[str, object]:
    """The keys that may stand in an algorithm's section at this value, and mean nothing any more."""
    return {**retired_settings(name), **(OF_EARLIER_GCML if name == "gcml" else {})}


def retired_problem(section: Mapping[str, Any]) -> tuple[str, str, object, str] | None:
    """What an algorithm's settings ask for that is gone: (problem, key, value, remedy), or None."""
    name = section.get("name")
    if name == "gossip_ensemble":
        problem = "is no longer an algorithm: every algorithm predicts with several models now"
        return problem, "algorithm.name", name, "Write gossip_average, or gcml, at all sites."
    for key, without in droppable_settings(name).items():
        if key in section and section[key] != without:
            why = _MEASURED
            remedy = "Leave the key out, at all sites."
            if key == "lambda_ramp_visits":
                why, remedy = "the weight grows by rounds", "Write lambda_ramp_rounds, at all sites."
            return f"is no longer a setting: {why}", f"algorithm.{key}", section[key], remedy
    return None


def retired_training(section: Mapping[str, Any]) -> tuple[str, str, object, str] | None:
    """What the training section asks for that is gone: (problem, key, value, remedy), or None."""
    for key in ("shadow_local", "ensemble_peers"):
        if section.get(key):
            return "is no longer a setting", f"training.{key}", section[key], _PERSONAL
    return None


TRAINING_WITHOUT: Mapping[str, object] = MappingProxyType({"shadow_local": False, "ensemble_peers": False})
"""Retired keys of the training section, each with the value that is the same as leaving it out."""
