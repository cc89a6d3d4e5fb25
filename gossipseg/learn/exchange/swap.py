"""A swap at the worker (docs/design/swap.md): the snapshot out, the partner's in, and the mix.

    T += w·(Q(theirs) − Q(own))                                                                          (1)

Both snapshots as they went over the wire, whatever this site has trained since. With the partner's weight
1 − w, and both sites applying it, Σ m·T stays as it is. The optimizer's moments stay as they are, and nothing
is ever undone: that would break the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gossipseg.algos.base import Algorithm
from gossipseg.errors import DiskFull, LocalError, PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.global_model import GlobalModel, everything
from gossipseg.learn.exchange.harm import Harm, change_by_patient
from gossipseg.learn.exchange.wire_format import all_finite, export_wire, load_incoming
from gossipseg.learn.params import MAX_CLAIMED_COUNT


class Swaps:
    """This site's side of its swaps."""

    def __init__(
        self,
        run: RunState,
        algorithm: Algorithm,
        shared: ModelState,
        admission: Admission,
        global_model: GlobalModel,
    ) -> None:
        self._run, self._algorithm, self._shared = run, algorithm, shared
        self._admission, self._global_model = admission, global_model
        self.harm = Harm()

    def export(self, order: protocol.ExportSnapshot) -> protocol.SnapshotExported:
        """Write the shared model as it is now to outbox/."""
        spec, history = self._run.settings.spec, self._run.history
        round = history.round + history.ahead
        if not all_finite(self._shared.weights()):
            return protocol.SnapshotExported(order.swap, None, round, "not_finite")
        path = Path(spec.state_dir) / "outbox" / f"swap-{order.swap.asker}-{order.swap.number}.safetensors"
        cases, dice = self._run.site.cases, history.dice_shared
        metadata = {"site": spec.site, "round": round, "steps": history.steps, "cases": cases}
        try:
            update = self._global_model.release(history.round, swap=not order.keeps)
            export_wire(path, update, everything, spec.wire_dtype, {**metadata, "dice_val": dice})
        except LocalError as e:
            reason = "disk_full" if isinstance(e, DiskFull) else "not_written"
            return protocol.SnapshotExported(order.swap, None, round, reason)
        export = protocol.Export(str(path), cases, history.steps, dice)
        return protocol.SnapshotExported(order.swap, export, round)

    def admit(self, order: protocol.AdmitSnapshot) -> protocol.SnapshotAdmitted:
        """Check the partner's snapshot by its values."""
        try:
            self._read(order.path, order.frm, self._admission)
        except PeerRefused as e:
            return protocol.SnapshotAdmitted(order.swap, e.reason, e.detail)
        return protocol.SnapshotAdmitted(order.swap)

    def apply(self, order: protocol.ApplySwap) -> protocol.SwapApplied:
        """Mix, or take the partner's model over. One that is in this model already is told of again."""
        history, harm = self._run.history, ""
        if history.last_swap != (order.swap.asker, order.swap.number):
            try:
                harm = self._apply(order)
            except PeerRefused as e:
                return protocol.SwapApplied(order.swap, e.reason, e.detail, history.steps, history.ahead)
        return protocol.SwapApplied(
            order.swap, steps=history.steps, ahead=history.ahead, frm=order.frm, harm=harm
        )

    def _apply(self, order: protocol.ApplySwap) -> str:
        """Why the partner's swaps do harm, or "". Raises PeerRefused before anything has changed."""
        history = self._run.history
        if order.part == "copy" and self._run.is_last(history.round):
            raise PeerRefused(order.frm, "last_round", "training has ended here: nothing would be trained")
        theirs = self._read(order.theirs, order.frm)
        history.in_average = False  # what the average took in is no longer what the weights are
        if order.part == "copy":
            self._copy(order, theirs)
            self._applied(order)
            return ""
        own = self._read(order.own or "", self._run.settings.spec.site)
        before = self._losses()
        add_difference(self._shared.weights(), theirs, own, order.weight)
        self._global_model.swapped(theirs, order.weight, own if order.gave else None)
        self._applied(order)  # a stop may come in the middle of the validation, and be checkpointed
        if before is None:
            return ""
        change = change_by_patient(before, self._losses() or (), self._run.site.patients("validation"))
        return self.harm.note(order.frm, change)

    def _applied(self, order: protocol.ApplySwap) -> None:
        """Note that the swap is in the weights: it is never applied again."""
        history = self._run.history
        history.last_swap = (order.swap.asker, order.swap.number)
        if history.first_exchange is None:
            history.first_exchange = history.round + 1

    def _losses(self) -> list[float | None] | None:
        """Validation NLL of the training weights, by case; None under dp: who is set aside tells of it."""
        if self._run.settings.privacy.dp is not None:
            return None
        return self._run.losses(self._shared.model, self._run.history.round + 1)

    def _copy(self, order: protocol.ApplySwap, theirs: Mapping[str, Tensor]) -> None:
        """The partner's model brings its steps and its round: the present one is the next."""
        history, training = self._run.history, self._run.settings.training
        self._shared.become(theirs)
        self._global_model.became(theirs)
        history.steps = min(order.steps, MAX_CLAIMED_COUNT)
        ahead = max(0, min(order.round, MAX_CLAIMED_COUNT) - history.round)
        left = ahead if training.rounds is None else max(0, training.rounds - history.round - 1)
        history.ahead = min(ahead, left)
        history.dice_val = history.dice_shared = None

    def _read(self, path: str, frm: str, admission: Admission | None = None) -> dict[str, Tensor]:
        """The shared tensors of a snapshot, on the model's device. Raises PeerRefused."""
        local, dtype = self._shared.weights(), self._run.settings.spec.wire_dtype
        found = load_incoming(Path(path), local, self._algorithm.is_shared, dtype, frm, admission)
        return {name: tensor.to(local[name].device) for name, tensor in found.items()}


@torch.no_grad()
def add_difference(
    weights: Mapping[str, Tensor], theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], share: float
) -> None:
    """Equation (1) on the live tensors in `weights`. Those that are no floating-point numbers stay."""
    for name, tensor in theirs.items():
        if torch.is_floating_point(tensor):
            wide = torch.promote_types(tensor.dtype, torch.float32)
            change = share * (tensor.to(wide) - own[name].to(wide))
            weights[name].copy_((weights[name].to(wide) + change).to(weights[name].dtype))
