"""The last feature map of a network: what goes into the layers that make its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from gossipseg.nets.segmenter import Segmenter, padding

HEADS = ("head", "out", "output_block", "conv_final", "model.2")
"""Where networks have the layers that make the logits: our own, MONAI's UNETR kin, DynUNet, SegResNet, UNet.
A network of an installed package names its own `head`."""


def head_of(model: Segmenter) -> nn.Module | None:
    """The layers that make the logits; None where they are not known."""
    for path in HEADS:
        try:
            return model.network.get_submodule(path)
        except AttributeError:
            continue
    return None


@contextmanager
def tapped(model: Segmenter) -> Iterator[list[Tensor]]:
    """Gather what goes into the head, once a pass: as it comes, with its graph.

    A network with dropout before its head alone has a second pass through that, with dropout off.
    """
    found: list[Tensor] = []
    head = head_of(model)
    if head is None:
        raise ValueError(f"{type(model.network).__name__} names no head")
    handle = head.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        handle.remove()


def at_input_size(model: Segmenter, features: Tensor, size: Sequence[int]) -> Tensor:
    """A feature map (B, F, …) of images of that size, voxel by voxel as they are: (B, F, *size)."""
    missing = padding(size, model.stride)[1::2]
    padded = [n + more for n, more in zip(size, reversed(missing), strict=True)]
    if list(features.shape[2:]) != padded:
        features = F.interpolate(features, padded, mode="nearest")
    return features[(slice(None), slice(None), *(slice(0, n) for n in size))]
