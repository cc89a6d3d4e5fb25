"""Q, the eight-bit form of a tensor (docs/design/equations.md §0): blocks of 64 values with a scale each.

Over the flattened tensor x, block by block (the last one may be shorter), [O]:

    s    = max|x|/127, rounded up to float16                                                             (1)
    q    = x/s, rounded to the nearest whole number (halves to the even one), within −127 … 127          (2)
    Q(x) = q·s                                                                                           (3)

A block of zeros has s = 0 and q = 0. (3) is exact in float32: seven bits times eleven. As s is rounded up, no
value is cut off by (2), and |x − Q(x)| ≤ s/2. The smallest s above 0 is 2^−24, the largest 65504: a tensor
that is not finite, or whose largest value would need a larger s, has no such form.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_VALUES = 64
LARGEST = 127
"""Largest |q|: −128 is never written."""
SMALLEST_SCALE = 2.0**-24
"""The smallest float16 above 0."""


class NotRepresentable(ValueError):
    """The tensor is not finite, or beyond 127·65504."""


class NeverWritten(ValueError):
    """What came is not what equations (1) and (2) can give."""


def blocks_in(values: int) -> int:
    """The number of scales of a tensor with that many values."""
    return -(-values // BLOCK_VALUES)


def quantised(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(q as int8 in the tensor's shape, s as float16 of shape (blocks,)), on the tensor's device.

    Raises NotRepresentable.
    """
    count = tensor.numel()
    flat = torch.zeros(blocks_in(count) * BLOCK_VALUES, device=tensor.device)
    flat[:count] = tensor.detach().reshape(-1)
    blocks = flat.view(-1, BLOCK_VALUES)
    low, high = blocks.aminmax(dim=1)
    scales = scales_of(torch.maximum(-low, high).abs_())  # −0 has a sign
    if not bool(torch.isfinite(scales).all()):
        raise NotRepresentable(
            f"it holds values that are not finite, or beyond {LARGEST}·65504, which int8 cannot carry"
        )
    divisors = scales.to(torch.float32).clamp(min=SMALLEST_SCALE)  # of a block of zeros: any will do
    q = blocks.div_(divisors.unsqueeze(1)).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return q.reshape(-1)[:count].reshape(tensor.shape), scales


def scales_of(largest: Tensor) -> Tensor:
    """Equation (1) from each block's max|x|, float32: the smallest float16 s with 127·s ≥ max|x|.

    Infinite where there is none. 127·s is exact in float32, so that the comparison is.
    """
    near = (largest / LARGEST).to(torch.float16)
    next_above = (near.view(torch.int16) + 1).view(torch.float16)
    return torch.where(near.to(torch.float32) * LARGEST < largest, next_above, near)


def dequantised(q: Tensor, scales: Tensor, begin: int = 0) -> Tensor:
    """Equation (3) in float32, in the shape of `q`.

    `q` may be a part of the flattened tensor that begins at its value `begin`. `scales`: those of the blocks
    that the part touches. Beside the result no more than a block of memory is needed.
    """
    first = begin % BLOCK_VALUES
    spread = scales.to(torch.float32).repeat_interleave(BLOCK_VALUES)
    return spread[first : first + q.numel()].mul_(q.reshape(-1)).reshape(q.shape)


def check_quantised(name: str, q: Tensor, scales: Tensor) -> None:
    """Raise NeverWritten where no honest site has written this. (Scales that are not finite show in (3).)"""
    if q.numel() and int(q.min()) < -LARGEST:
        raise NeverWritten(f"{name} holds {-LARGEST - 1}, which is never written")
    if bool(torch.signbit(scales).any()):
        raise NeverWritten(f"{name} has a negative scale")
