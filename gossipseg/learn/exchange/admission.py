"""Admission by values: is an arriving model of a size that honest training could have given it?

A layer ℓ with n values, w here and x as it arrives, is measured against the scale

    s = max(‖w‖, √n·u)       u: 1 for tensors of one axis (biases, affine weights of norms: the scale of
                             normalised activations), else the root mean square of all other layers' values
    norm ratio  ‖x‖ / s                                                                                  (1)
    change      ‖x − w‖ / s                                                                              (2)

and both over the whole model, Σ over its layers under the root. The whole model has a third measure,

    likeness    Σ ⟨x, w⟩/s² / √(Σ ‖x‖²/s² · Σ ‖w‖²/s²),  over tensors of two axes or more                (3)

their cosine, layer by layer on the scale s. All sites begin with the same weights, and two that train apart
stay alike (750 steps on brain MR of two sequences: 0.54); weights drawn at random have 0 ± 1/√n, however well
their norms are chosen, and an average with them is noise. Where nothing is averaged, (3) is not asked for. A
bound on (1) and (2) is

    max(least, min(without_history, max(factor · median of arrivals, factor · median of the site's own)))  (4)

(a norm ratio is 1 + an excess, and (4) holds for the excess) once a few models have been accepted, and max
of `least` and `without_history` before. "Own" is how far the site's training model stands from its moving
average at the end of a round. Medians: a minority of arrivals that creep outwards moves no bound. But one
site may send most of what arrives: no history takes a bound beyond `without_history`. A layer may
always differ by twice its own norm (`least`), or a site that comes back after weeks alone would be shut out:
what lies within the bounds goes on to the guard on Dice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gossipseg.algos.base import Weights
from gossipseg.learn.params import AdmissionParams

Reason = Literal["norm_exploded", "layer_changed_too_much", "not_finite", "unrelated", "bad_format"]
Series = dict[str, list[float]]

WHOLE = ""
"""The name under which the whole model is measured."""


class Unfit(Exception):
    """A model's values lie outside the bounds. `reason` is a stable code; `detail` has layer and figures."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Admission:
    """A site's history of accepted models, and the bounds that follow from it."""

    def __init__(self, params: AdmissionParams, *, averages: bool = True) -> None:
        """`averages`: whether models are averaged. If not, (3) is not asked for: what only trains beside this
        site's model, or replaces it, may have grown as far apart as it likes."""
        self.params = params
        self.least_likeness = params.least_likeness if averages else -1.0
        self.accepted = 0
        """Models accepted so far."""
        self._excesses: Series = {}
        self._changes: Series = {}
        self._own: Series = {}

    def against(self, own: Weights) -> Examination:
        """The examination of one arriving model. `own`: this site's tensors, live, on any device."""
        return Examination(self, own)

    def note_own(self, model: Weights, average: Weights) -> None:
        """Take in how far the training model stands from its moving average, at the end of a round."""
        yardstick = LayerScales(average)
        total = Totals()
        for name in yardstick.scales:
            change = distance(model[name], average[name])
            total.add(change, 0.0, yardstick.scales[name])
            self._keep(self._own, name, change / yardstick.scales[name])
        self._keep(self._own, WHOLE, total.change)

    def bounds(self, name: str) -> tuple[float, float]:
        """(largest norm ratio, largest change) of a layer: equation (4)."""
        p = self.params
        own = p.factor * _median(self._own, name)
        norm = max(1 + p.factor * _median(self._excesses, name), 1 + own)
        change = max(p.factor * _median(self._changes, name), own)
        if self.accepted < p.history_min:
            norm = change = p.without_history
        return (
            max(p.least_norm_ratio, min(p.without_history, norm)),
            max(p.least_change, min(p.without_history, change)),
        )

    def accept(self, norms: Mapping[str, float], changes: Mapping[str, float]) -> None:
        """Take an accepted model's norm ratios and changes into the history."""
        self.accepted += 1
        for name, ratio in norms.items():
            self._keep(self._excesses, name, max(0.0, ratio - 1))
        for name, change in changes.items():
            self._keep(self._changes, name, change)

    def _keep(self, series: Series, name: str, figure: float) -> None:
        if math.isfinite(figure):
            kept = series.setdefault(name, [])
            kept.append(figure)
            del kept[: -self.params.history_kept]

    # ------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "accepted": self.accepted,
            "excesses": _copy(self._excesses),
            "changes": _copy(self._changes),
            "own": _copy(self._own),
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what state() gave; None (a checkpoint of an earlier version) begins anew."""
        state = state or {}
        self.accepted = int(state.get("accepted", 0))
        self._excesses, self._changes, self._own = (
            _copy(state.get(key, {})) for key in ("excesses", "changes", "own")
        )


def check_table(name: str, tensor: Tensor, own: Tensor) -> None:
    """Raise Unfit where whole numbers differ from this site's own: they are tables of the network.

    A wrong index in one would end the process that predicts with it. Counters of training never travel.
    """
    if not own.is_floating_point() and not own.is_meta and not torch.equal(tensor.cpu(), own.cpu()):
        raise Unfit("bad_format", f"{name} is a table of the network, and differs from this site's own")


class Examination:
    """One model on its way in, a tensor at a time. Nothing of it enters the history before accept()."""

    def __init__(self, admission: Admission, own: Weights) -> None:
        self._admission, self._own = admission, own
        self._yardstick = LayerScales(own) if admission.params.enabled else None
        self._norms: dict[str, float] = {}
        self._changes: dict[str, float] = {}
        self._total, self._likeness = Totals(), CosineSimilarity()

    def take(self, name: str, tensor: Tensor) -> None:
        """Measure one tensor; names that the site does not have are passed over. Raises Unfit."""
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Unfit("not_finite", f"{name} holds values that are not finite")
        if name in self._own:
            check_table(name, tensor, self._own[name])
        if self._yardstick is None or name not in self._yardstick.scales:
            return
        scale = self._yardstick.scales[name]
        size, change = norm(tensor), distance(tensor, self._own[name])
        self._total.add(change, size, scale)
        self._judge(name, size / scale, change / scale)
        if tensor.dim() > 1:
            self._likeness.add(tensor, self._own[name], scale)

    def accept(self) -> None:
        """Judge the whole model, and take it into the history. Raises Unfit."""
        if self._total.any:
            self._judge(WHOLE, self._total.norm, self._total.change)
        least, likeness = self._admission.least_likeness, self._likeness.value
        if likeness < least:
            raise Unfit(
                "unrelated",
                f"the whole model: its cosine with this site's is {likeness:.3g}, bound {least:.3g}",
            )
        self._admission.accept(self._norms, self._changes)

    def _judge(self, name: str, size: float, change: float) -> None:
        largest, furthest = self._admission.bounds(name)
        what = name or "the whole model"
        if not size <= largest:
            raise Unfit(
                "norm_exploded", f"{what}: its norm is {size:.3g} times this site's, bound {largest:.3g}"
            )
        if not change <= furthest:
            raise Unfit(
                "layer_changed_too_much",
                f"{what}: it is {change:.3g} times its norm away from this site's, bound {furthest:.3g}",
            )
        self._norms[name], self._changes[name] = size, change


class LayerScales:
    """The scale s of every floating-point layer of a model."""

    def __init__(self, own: Weights) -> None:
        sizes = {
            name: (tensor.numel(), tensor.dim(), norm(tensor))
            for name, tensor in own.items()
            if tensor.is_floating_point() and tensor.numel()
        }
        matrices = [(n, size) for n, dim, size in sizes.values() if dim > 1]
        count = sum(n for n, _ in matrices)
        typical = math.sqrt(sum(size**2 for _, size in matrices) / count) if count else 1.0
        self.scales = {
            name: max(size, math.sqrt(n) * (typical if dim > 1 else 1.0)) or 1.0
            for name, (n, dim, size) in sizes.items()
        }


class Totals:
    """The same measures over the layers together."""

    def __init__(self) -> None:
        self._change2 = self._norm2 = self._scale2 = 0.0

    def add(self, change: float, size: float, scale: float) -> None:
        """Take in a layer's ‖x − w‖, ‖x‖ and s."""
        self._change2 += change * change
        self._norm2 += size * size
        self._scale2 += scale * scale

    @property
    def any(self) -> bool:
        return self._scale2 > 0

    @property
    def change(self) -> float:
        return math.sqrt(self._change2 / self._scale2) if self.any else 0.0

    @property
    def norm(self) -> float:
        return math.sqrt(self._norm2 / self._scale2) if self.any else 0.0


class CosineSimilarity:
    """Equation (3), a tensor at a time."""

    def __init__(self) -> None:
        self._product = self._x2 = self._w2 = 0.0

    def add(self, x: Tensor, w: Tensor, scale: float) -> None:
        """Take in a layer as it arrives, as it is here, and its scale s."""
        common = torch.promote_types(x.dtype, torch.float32)
        product = torch.dot(x.detach().to(common).flatten(), w.detach().to(x.device, common).flatten())
        self._product += float(product) / scale**2
        self._x2 += (norm(x) / scale) ** 2
        self._w2 += (norm(w) / scale) ** 2

    @property
    def value(self) -> float:
        """−1 … 1; 1 where this site's own weights are all zero, or none was measured."""
        if self._w2 == 0:
            return 1.0
        cosine = self._product / math.sqrt(self._x2 * self._w2) if self._x2 > 0 else 0.0
        return max(-1.0, min(1.0, cosine))


def norm(tensor: Tensor) -> float:
    """‖x‖, summed in float64 so that float32's largest values have one too."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))


def distance(x: Tensor, w: Tensor) -> float:
    """‖x − w‖."""
    return norm(x.detach().to(torch.promote_types(x.dtype, torch.float32)) - w.detach().to(x.device))


def _median(series: Series, name: str) -> float:
    kept = series.get(name)
    return statistics.median(kept) if kept else 0.0


def _copy(series: Mapping[str, Any]) -> Series:
    return {str(name): [float(v) for v in kept] for name, kept in series.items()}
