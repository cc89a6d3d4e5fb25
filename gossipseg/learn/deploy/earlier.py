"""Checkpoints of versions before the personal model: what of them is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def of_earlier_version(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint with its personal model under today's name.

    Until 0.4 the shadow (training.shadow_local) was exactly that, and Ditto's was kept beside the shared
    model's weights, with the average (EMA) of its own.
    """
    if "personal_model" in state:
        return state
    if "shadow" in state:
        return {**state, **_of_shadow(state["shadow"])}
    return {**state, **_of_ditto(state)} if "personal" in state else state


def _of_shadow(shadow: Mapping[str, Any]) -> dict[str, Any]:
    place = {key: shadow[key] for key in ("round", "step", "averaged")}
    alone = shadow.get("verdict", {}).get("deployed") == "shadow"
    weights = {"personal": 1.0} if alone else {"personal": 0.5, "shared": 0.5}
    why = "it was deployed by an earlier version" if alone else ""
    personal = {"begun": True, "copied_from": "", "model": shadow["student"], **place}
    return {"personal_model": personal, "mix": {"weights": weights, "why": why}}


def _of_ditto(state: Mapping[str, Any]) -> dict[str, Any]:
    """The average was the personal model's: the shared one's begins anew."""
    history = {**state["history"], "in_average": False}
    round = history["round"] + 1  # the one that it is in
    model = {**state["personal"], **{key: state[key] for key in ("ema", "averaged_rounds")}}
    place = {"round": round, "step": history["step"], "averaged": round if history["averaged"] else round - 1}
    personal = {"begun": True, "copied_from": "", "model": model, **place}
    mix = {"weights": {"personal": 1.0}, "why": "it was deployed by an earlier version"}
    own = {"ema": state["model"], "averaged_rounds": 0, "history": history}
    return {"personal_model": personal, "mix": mix, **own}
