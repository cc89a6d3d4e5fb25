"""Weighted averages of models: in float32 or wider, over what was really received."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gossipseg.algos.base import Update, Weights


def weighted_average(models: Sequence[Weights], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ wᵢ·Wᵢ / Σ wᵢ for every floating-point tensor, in its own dtype again.

    The sum runs in float32, or in the tensor's own type where that is wider. Non-float buffers are taken
    from the first model: an average of counters or index tables means nothing.
    `models`: at least one, all with the same names and shapes. `weights`: as many, ≥ 0, not all 0.
    Raises ValueError otherwise.
    """
    shares = _normalised(weights, len(models))
    first = models[0]
    for other in models[1:]:
        _check_alike(first, other)
    return {name: _average([m[name] for m in models], shares) for name in first}


def _normalised(weights: Sequence[float], count: int) -> list[float]:
    if count == 0 or len(weights) != count:
        raise ValueError(f"{count} models and {len(weights)} weights: need one weight for each, at least one")
    total = math.fsum(weights)
    if not math.isfinite(total) or min(weights) < 0 or total <= 0:
        raise ValueError(f"weights must be finite, not negative and not all zero: {list(weights)}")
    return [w / total for w in weights]


def running_average(updates: Sequence[Update], weights: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    """weighted_average() of models that lie on disk, a tensor at a time: two of them are in memory at most.

    Raises ValueError as weighted_average() does.
    """
    shares = _normalised(weights, len(updates))
    first = updates[0]
    for other in updates[1:]:
        if set(other.names) != set(first.names):
            name = min(set(other.names) ^ set(first.names))
            raise ValueError(f"{name} is in one update and not in another: nothing to average it with")
    for name in sorted(first.names):
        total = first.tensor(name)
        if torch.is_floating_point(total):
            total = total * shares[0]
            for update, share in zip(updates[1:], shares[1:], strict=True):
                total.add_(update.tensor(name), alpha=share)
        yield name, total


def _check_alike(first: Weights, other: Weights) -> None:
    if first.keys() != other.keys():
        name = min(first.keys() ^ other.keys())
        raise ValueError(f"{name} is in one model and not in another: nothing to average it with")
    for name, tensor in first.items():
        if tensor.shape != other[name].shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} in one, {tuple(other[name].shape)} in another")


def _average(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    first = tensors[0].detach()
    if not torch.is_floating_point(first):
        return first.clone()
    wide = torch.promote_types(first.dtype, torch.float32)
    total = torch.zeros_like(first, dtype=wide)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor.detach().to(wide), alpha=share)
    return total.to(first.dtype)


def merged(local: Weights, incoming: Weights, is_shared: Callable[[str], bool]) -> dict[str, Tensor]:
    """(W_r + W_s)/2 over the shared tensors; the private ones stay the receiver's. Names as in `local`.

    `incoming` may hold private names besides; they are not looked at. Raises ValueError when a shared tensor
    is missing or has another shape.
    """
    names = [name for name in local if is_shared(name)]
    missing = [name for name in names if name not in incoming]
    if missing:
        raise ValueError(f"the incoming model lacks {missing[0]} ({len(missing)} of {len(names)} missing)")
    mine, theirs = ({name: weights[name] for name in names} for weights in (local, incoming))
    average = weighted_average([mine, theirs], [0.5, 0.5])
    return {name: average.get(name, tensor) for name, tensor in local.items()}
