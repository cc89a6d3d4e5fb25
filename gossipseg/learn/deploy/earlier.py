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
    shadow, ditto = state.get("shadow"), state.get("personal")
    if shadow is not None:
        place = {key: shadow[key] for key in ("round", "step", "averaged")}
        found = {"model": shadow["student"], **place}
    elif ditto is not None:
        average = {key: state[key] for key in ("ema", "averaged_rounds")}
        round, step = (state["history"][key] for key in ("round", "step"))
        found = {"model": {**ditto, **average}, "round": round, "step": step, "averaged": round}
    else:
        return state
    return {**state, "personal_model": {"begun": True, "copied_from": "", **found}}
