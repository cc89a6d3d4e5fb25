"""What settings of several algorithms have in common."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gossipseg.algos.params.retired import retired_settings

FORBID: dict[str, Any] = {"extra": "forbid"}

Exchange = Literal["none", "gossip", "rounds"]
"""How models travel: not at all, from site to site (core/gossip), or by a rotating coordinator
(core/rounds)."""

Personal = Literal["yes", "may", "own", "itself", "no"]
"""The personal model beside the one that travels. yes: it trains unless training.personal says none; may: it
does where training.personal says always; own: the algorithm has one, always; itself: the only model is one;
no: there can be none."""

Rule = Literal["none", "trimmed_mean", "median", "krum"]


ROBUST_KEYS = ("robust", "trim", "byzantine")
FINETUNE_KEYS = ("finetune_learning_rate", "finetune_schedule")


def settings(params: Any) -> dict[str, Any]:
    """All settings of an algorithm that do something: those of robust rules only where there is one, those of
    fine-tuning only where some rounds are fine-tuned, GCML's contrast where it is not that of its logits.
    Those that earlier versions had besides stand at the value by which this one goes.

    So two versions of this program agree on a federation that uses nothing which only one of them knows.
    """
    found = dataclasses.asdict(params) | retired_settings(params.name)
    unused: set[str] = set()
    if found.get("robust", "none") == "none":
        unused |= set(ROBUST_KEYS)
    if not found.get("finetune_rounds"):
        unused |= set(FINETUNE_KEYS)
    if params.name == "gcml" and params.contrast == "logits":
        unused.add("contrast")
    return {key: value for key, value in found.items() if key not in unused}


def robust_problem(params: Any, listed: int) -> tuple[str, str, object, str] | None:
    """Why its robust rule cannot work: (problem, key, value, remedy), or None. `listed` sites; 0: unknown."""
    rule = getattr(params, "robust", "none")
    if rule == "none":
        return None
    if params.combines_itself:
        problem = f"{params.name} combines updates in a way of its own"
        return problem, "algorithm.robust", rule, "Remove the key, or use fedavg or one of its relatives."
    least = 2 * params.byzantine + 3 if rule == "krum" else 3
    if 0 < listed < least:
        problem = f"{rule} needs {least} sites or more, and {listed} are listed"
        return problem, "algorithm.robust", rule, "List more sites, or use median (from 3 sites), or none."
    if rule == "trimmed_mean" and 0 < listed <= 2 * math.ceil(params.trim * listed - 1e-9):
        problem = f"cuts off every update of the {listed} listed sites"
        return problem, "algorithm.trim", params.trim, "Write a smaller share, or use robust: median."
    return None


@dataclass(frozen=True, slots=True)
class Coordinated:
    """Options of algorithms whose models meet at the coordinator of a round."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID
    exchange: ClassVar[Exchange] = "rounds"
    personal: ClassVar[Personal] = "may"
    min_sites: ClassVar[int] = 1
    """With fewer listed sites the algorithm means nothing, and is refused at start."""
    combines_itself: ClassVar[bool] = False
    """Whether it has an aggregation of its own, which no robust rule can stand for."""
    networks: ClassVar[tuple[str, ...] | None] = None
    """Networks that have the parts it needs, its own one first; None: any."""
    finetune_rounds: Annotated[int, Field(ge=0)] = 0
    """How many of the last rounds of the budget are trained alone, from the last global model."""
    finetune_learning_rate: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    """Learning rate at the beginning of these rounds; None: training.learning_rate."""
    finetune_schedule: Literal["cosine", "constant"] = "cosine"
    """Schedule of these rounds: down to a hundredth over all of them, or none."""
    weighting: Literal["cases", "uniform"] = "cases"
    """What a site weighs in the average: its training cases n_k, or one."""
    robust: Rule = "none"
    """How updates are combined where some may be bad; sites then weigh the same."""
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share that `trimmed_mean` cuts off at each end, rounded up to whole updates."""
    byzantine: Annotated[int, Field(ge=0)] = 1
    """How many updates of a round may be bad under `krum`; that many are left out of each."""
