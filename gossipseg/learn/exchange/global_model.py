"""A site's side of a coordinated round: the global model taken in, what is frozen, the update sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossipseg.algos.base import Algorithm, StepPosition, Weights
from gossipseg.errors import PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.train_step import Learner
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.rest import Rest
from gossipseg.learn.exchange.wire_format import INT8, load_common, shared
from gossipseg.learn.params import PrivacyParams, WorkerSpec
from gossipseg.learn.privacy.clip_and_noise import Release


def everything(name: str) -> bool:
    """The predicate of a file that holds all it was given."""
    return True


class GlobalModel:
    """The last global model's part in a site's training."""

    def __init__(
        self,
        algorithm: Algorithm,
        model_state: ModelState,
        spec: WorkerSpec,
        admission: Admission,
        privacy: PrivacyParams,
    ) -> None:
        self._algorithm, self._model_state, self._spec = algorithm, model_state, spec
        self._admission, self._private = admission, Release(privacy, spec.site, self._travelling())
        self.rest = Rest(active=spec.wire_dtype == INT8 and not algorithm.exchanges)
        self.anchor: dict[str, Tensor] = {}
        """The shared tensors of the last global model (W_0 before the first), on the device; empty unless
        the algorithm asks for them."""
        self._remember()

    def begin(
        self, common: protocol.GlobalModelFile, *, settling_in: bool, finetuning: bool = False
    ) -> tuple[bool, str]:
        """Let the round start from a global model: whether it was taken, and what went wrong, or "".

        A site that joined after the others had begun takes it over outright, its EMA too. The rest of this
        site's own update is added where it is due (rest.py). `anchor`, and what is clipped against, lack it.
        """
        model_state, spec = self._model_state, self._spec
        local = model_state.weights()
        try:
            incoming = load_common(
                Path(common.path),
                spec.site,
                local,
                self._algorithm.is_shared,
                spec.wire_dtype,
                self._admission,
            )
            owed = self.rest.owed(Path(common.path)) if incoming is not None else {}
        except PeerRefused as e:
            return False, f"the global model of round {common.round} was not taken: {e.reason}: {e.detail}"
        if incoming is None:
            return False, ""
        # An algorithm may calculate with both, and moves nothing between devices.
        incoming = {name: tensor.to(local[name].device) for name, tensor in incoming.items()}
        weights = self._algorithm.on_global(local, incoming)
        if settling_in:
            model_state.become(weights)
        else:
            model_state.model.load_state_dict(dict(weights), strict=False)
        self._remember()
        self._private.set_reference(incoming)
        if not (settling_in or finetuning):
            self._add(owed)
        return True, ""

    @torch.no_grad()
    def _add(self, rest: Mapping[str, Tensor]) -> None:
        weights = self._model_state.weights()
        for name, tensor in rest.items():
            weights[name].add_(tensor.to(weights[name].device))

    def update(self) -> Weights:
        """What the site sends: to a coordinator, or in gossip."""
        return self._algorithm.update_of(self._sent(), self.anchor)

    def release(self, round: int, *, swap: bool = False) -> Weights:
        """update() as it leaves the site after `round`: clipped and blurred where the settings ask for it.

        `swap`: of one that this site will apply; what others know moves then, if it comes to that.
        """
        if not self._private.active:
            return self.update()
        told = self._private.of(self._travelling(), round)
        if self._algorithm.exchanges and not swap:  # in gossip nobody else says where everybody stands
            self._private.set_reference(told)
        return self._algorithm.update_of({**self._sent(), **told}, self.anchor)

    def became(self, theirs: Weights) -> None:
        """A peer's model was taken over: where everybody stands."""
        self._private.set_reference(theirs)

    def swapped(self, theirs: Weights, weight: float, told: Weights | None) -> None:
        """A swap was applied. `told`: this site's own snapshot, where the partner got it."""
        self._private.swapped(theirs, weight, told)

    def sent(self, update: Weights, hash: str) -> None:
        """The update is in the file with this hash: keep what did not fit into it."""
        weights = self._model_state.weights()
        self.rest.keep({name: tensor for name, tensor in update.items() if name in weights}, hash)

    def private_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self._private.state()

    def load_private(self, state: Mapping[str, Tensor] | None, *, exchanged: bool = True) -> None:
        """From a checkpoint, or from a state that private_state() gave. Where nothing was clipped until now,
        what others know is the model as it stands, or W_0 where none was exchanged."""
        if state:
            self._private.load(state)
        elif exchanged:
            self._private.set_reference(self._travelling())

    def _travelling(self) -> dict[str, Tensor]:
        return shared(self._sent(), self._algorithm.is_shared)

    def _sent(self) -> dict[str, Tensor]:
        return self._model_state.weights()

    def set_anchor(self, anchor: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's."""
        device = next(self._model_state.model.parameters()).device
        self.anchor = {name: tensor.to(device) for name, tensor in anchor.items()}

    def _remember(self) -> None:
        if self._algorithm.needs_anchor:
            self.anchor = {
                name: tensor.detach().clone()
                for name, tensor in self._model_state.weights().items()
                if self._algorithm.is_shared(name) and torch.is_floating_point(tensor)
            }


@contextmanager
def frozen(learner: Learner, algorithm: Algorithm, moment: StepPosition) -> Iterator[None]:
    """Within it, the parameters that the algorithm freezes for this round do not train."""
    held = [
        parameter
        for name, parameter in learner.model.named_parameters()
        if parameter.requires_grad and algorithm.is_frozen(name, moment)
    ]
    try:
        for parameter in held:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
