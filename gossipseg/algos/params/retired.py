"""Settings that earlier versions had and this one has not: measured, they brought nothing.

A key that stands at the value by which this version goes changes nothing: files of earlier versions hold such
lines, and sites of earlier versions count them into what they compare. Any other value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SAME_AS_WITHOUT: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "gcml": {"resident_rounds": 1, "private_norm": False},
        "gossip_average": {"private_norm": False},
    }
)
"""Algorithm → its retired keys, each with the value that is the same as leaving it out."""

_MERGES = ("val_weighted", "best_of")
_MEASURED = "it brought nothing when it was measured (docs/research/tables.md)"


def retired_settings(name: object) -> dict[str, object]:
    """The retired keys of an algorithm, as an earlier version has them that does what this one does."""
    return dict(SAME_AS_WITHOUT.get(name, {})) if isinstance(name, str) else {}


def retired_problem(section: Mapping[str, Any]) -> tuple[str, str, object, str] | None:
    """What an algorithm's settings ask for that is gone: (problem, key, value, remedy), or None."""
    for key, without in retired_settings(section.get("name")).items():
        if key in section and section[key] != without:
            problem = f"is no longer a setting: {_MEASURED}"
            return problem, f"algorithm.{key}", section[key], "Leave the key out, at all sites."
    if section.get("name") == "gcml" and section.get("merge") in _MERGES:
        problem = f"is no longer a rule: {_MEASURED}"
        return problem, "algorithm.merge", section["merge"], "Write merge: average, at all sites."
    return None
