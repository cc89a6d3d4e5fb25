"""The interface of all networks: padding to the stride, one kind of output, dropout off on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn

from gossipseg.nets.output import NetOutput


class Segmenter(nn.Module):
    """Any network, with input of any size: padded to the stride product, cropped again.

    Subclasses override `predict` where a network does not return a tensor. State-dict names begin with
    `network.`; `.network` is the network itself.
    """

    def __init__(self, network: nn.Module, stride: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> NetOutput:
        """(B, channels, *spatial) → NetOutput with logits at the same size.

        A size off the stride product is padded with zeros (a z-scored image's mean) at the far end of each
        axis. Auxiliary heads are brought to the input's size, so that they stay aligned with it.
        """
        size = x.shape[2:]
        if any(n % s for n, s in zip(size, self.stride, strict=True)):
            return cropped(self.predict(F.pad(x, padding(size, self.stride))), size)
        return self.predict(x)

    def predict(self, x: Tensor) -> NetOutput:
        return NetOutput(self.network(x))

    @torch.no_grad()
    def clean_logits(self, x: Tensor, output: NetOutput) -> Tensor:
        """Logits of the images that gave `output`, with dropout off, for a mutual-learning partner.

        They are free where the network has no dropout, or only before the head; else they cost a second
        forward pass.
        """
        if output.clean is not None:
            return output.clean
        with dropout_off(self) as any_dropout:
            return self(x).logits if any_dropout else output.logits.detach()


class SelfDescribing(Segmenter):
    """For networks that return NetOutput themselves."""

    def predict(self, x: Tensor) -> NetOutput:
        output: NetOutput = self.network(x)
        return output


class FeatureMaps(SelfDescribing):
    """For networks that return features at their stride, not logits: nothing to pad, nothing to crop.

    The input's size must be a multiple of the stride: the map then covers the image exactly.
    """

    def forward(self, x: Tensor) -> NetOutput:
        """(B, channels, *spatial) → NetOutput with features (B, C, *spatial / stride) as its logits."""
        size = tuple(x.shape[2:])
        if any(n % s for n, s in zip(size, self.stride, strict=True)):
            raise ValueError(f"an image of {size} is no multiple of {self.stride}")
        return self.predict(x)


class DynUNetSegmenter(Segmenter):
    """MONAI's DynUNet: its deep-supervision heads as they are, coarse, not stacked at full size.

    Two of its habits are undone. It registers every block twice, as itself and within `skip_layers`, so that
    each weight would be sent twice. Here `skip_layers` stays an attribute and is no submodule. It also keeps
    its last heads, which hold the batch's graph and break the deep copy of the EMA. They are removed after
    every pass.
    """

    def __init__(self, network: nn.Module, stride: Sequence[int]) -> None:
        super().__init__(network, stride)
        skip_layers = network._modules.pop("skip_layers")
        object.__setattr__(network, "skip_layers", skip_layers)

    def predict(self, x: Tensor) -> NetOutput:
        network = self.network
        logits = network.output_block(network.skip_layers(x))  # type: ignore[operator]
        aux: tuple[Tensor, ...] = ()
        if network.deep_supervision:
            heads: list[Tensor] = network.heads  # type: ignore[assignment]
            aux = tuple(heads) if self.training else ()
            heads[:] = [torch.zeros(1)] * len(heads)
        return NetOutput(logits, aux)


@contextmanager
def dropout_off(module: nn.Module) -> Iterator[bool]:
    """Switch off every dropout, and only that; batch norm uses the batch but keeps its statistics, their
    count included.

    Yields whether there was any to switch off.
    """
    kinds = (nn.modules.dropout._DropoutNd, DropPath)
    dropouts = [m for m in module.modules() if isinstance(m, kinds) and m.training]
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [m.momentum for m in norms]
    counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    try:
        for m in dropouts:
            m.training = False
        for n in norms:
            n.momentum = 0.0
        yield any(_rate(m) > 0 for m in dropouts)
    finally:
        for m in dropouts:
            m.training = True
        for n, momentum in zip(norms, kept, strict=True):
            n.momentum = momentum
        for counter, count in zip(counters, counts, strict=True):
            counter.copy_(count)


def _rate(module: nn.Module) -> float:
    return float(getattr(module, "p", None) or getattr(module, "drop_prob", None) or 0.0)


def padding(size: Sequence[int], stride: Sequence[int]) -> list[int]:
    """Arguments of torch's `pad` that bring a spatial size up to multiples of the stride, at the far ends."""
    missing = [-n % s for n, s in zip(size, stride, strict=True)]
    return [amount for n in reversed(missing) for amount in (0, n)]


def cropped(output: NetOutput, size: Sequence[int]) -> NetOutput:
    """The output of a padded input, without the padding."""
    window = (slice(None), slice(None), *(slice(0, n) for n in size))
    full = output.logits.shape[2:]
    mode = "bilinear" if len(full) == 2 else "trilinear"
    aux = tuple(F.interpolate(a, full, mode=mode, align_corners=False)[window] for a in output.aux)
    clean = None if output.clean is None else output.clean[window]
    return NetOutput(output.logits[window], aux, clean)
