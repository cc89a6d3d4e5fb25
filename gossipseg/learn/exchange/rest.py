"""The rest: what the rounding to int8 withheld of an update, kept for the next one (our reading, [O]).

Under a coordinator a site k sends Q(T_k) (quantisation.py) and goes on from the global model G with

    T_k ← Q(G) + (T_k − Q(T_k)),   T_k as it was sent                                                    (1)

The second term is the rest. Without it, steps below half a quantum of Q are lost for good. With it they add
up until they show. When it is added:

    the global model was made with this very update (its file's hash stands in G's metadata)   once
    it was made without it: late, refused, replaced by a later one, left out by a robust rule  not at all
    the same global model comes again                                                         not again
    no global model was taken (refused, or none came)                                         not yet
    the site takes the model over as one that joins late, or fine-tunes from it               not at all

Weights that were not replaced hold the rest already. A joiner begins where the others are. A model that is
fine-tuned does not travel any more. Each new update has a rest of its own, in place of the one before. A
checkpoint holds it, so that (1) survives a restart. In gossip nothing is replaced by what comes, and there is
no rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gossipseg.algos.base import Weights
from gossipseg.errors import PeerRefused
from gossipseg.learn.exchange.quantisation import dequantised, quantised
from gossipseg.learn.exchange.wire_format import INT8, is_quantised
from gossipseg.store import BadSafetensors, read_safetensors

SENT_IN = "updates"
"""The metadata of a global model that names the updates in it."""

_HASH_CHARACTERS = 16


def sent_in(hashes: Mapping[str, str], notes: Mapping[str, object]) -> str:
    """The text under SENT_IN from site → hash of its update's file, and the notes of the combination."""
    robust = notes.get("robust")
    left_out = robust.get("left_out", []) if isinstance(robust, dict) else []
    used = (hash[:_HASH_CHARACTERS] for site, hash in hashes.items() if site not in left_out)
    return ",".join(sorted(used))


def includes(path: Path, hash: str) -> bool:
    """Whether a global model's file was made with the update of that hash, as its maker says.

    Raises PeerRefused where it cannot be read.
    """
    try:
        named = read_safetensors(path).metadata.get(SENT_IN, "").split(",")
    except (BadSafetensors, OSError) as e:
        raise PeerRefused("coordinator", "unreadable", str(e)) from e
    return hash[:_HASH_CHARACTERS] in named


class Rest:
    """The rest of the update that was sent last; always empty unless `active`."""

    def __init__(self, *, active: bool) -> None:
        self.active = active
        self.hash = ""
        """The hash of that update's file; "" where none was sent."""
        self.tensors: dict[str, Tensor] = {}
        """By name, float32 on the CPU: of the tensors that are quantised alone."""

    def keep(self, update: Weights, hash: str) -> None:
        """An update was written to the file with this hash: its rest replaces the one before."""
        if not self.active:
            return
        self.hash, self.tensors = hash, {}
        for name, tensor in update.items():
            if is_quantised(tensor, INT8):
                missing = tensor.detach().float() - dequantised(*quantised(tensor))
                self.tensors[name] = missing.cpu()

    def owed(self, path: Path) -> dict[str, Tensor]:
        """What (1) adds to the weights that come from the global model at `path`; from then on nothing.

        Raises PeerRefused.
        """
        due = self.tensors if self.hash and includes(path, self.hash) else {}
        self.forget()
        return due

    def forget(self) -> None:
        """What was withheld is not owed any more."""
        self.hash, self.tensors = "", {}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"hash": self.hash, "tensors": dict(self.tensors)}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from state(); None (an earlier version's checkpoint) has no rest."""
        self.forget()
        if self.active and state:
            self.hash, self.tensors = state["hash"], dict(state["tensors"])
