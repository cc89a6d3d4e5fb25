"""The encoder of CoWPro (arXiv 2408.06235) and FedCoWPro: a ResNet at output stride 8, and a 1×1 convolution.

Structure [P, their published code]: ResNet (He 2016) whose last two stages keep their resolution and dilate
by 2 and 4 instead. The first block of each dilates as the stage before it, as in torchvision. There is no
ASPP; a 1×1 convolution to 256 channels follows. Module names are torchvision's. So its state dicts fit, and
those of the `backbone` of its segmentation models. Batch norm exists only pretrained and frozen; random
weights take group norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossipseg.errors import ConfigError
from gossipseg.nets.output import NetOutput
from gossipseg.nets.pretrained import read_weights

STRIDE = 8
FEATURES = 256
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)
GROUPS = 8
PRETRAINED_WIDTH = 64
IGNORED = ("fc.", "classifier.", "aux_classifier.")
"""Heads of the networks that such weights come from."""
KEY = "network.options.encoder_weights"

MakeNorm = Callable[[int], nn.Module]


class FrozenBatchNorm(nn.Module):
    """Batch norm that neither learns nor looks at the batch: x·s + t per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        scale = self.get_buffer("weight") * (variance + 1e-5).rsqrt()
        shift = self.get_buffer("bias") - mean * scale
        shape = (1, -1, 1, 1)
        return x * scale.view(shape).to(x.dtype) + shift.view(shape).to(x.dtype)


class Shortcut(nn.Sequential):
    """A 1×1 convolution and a norm beside a block. Its stride is taken by slicing: the backward pass of a
    strided 1×1 convolution in the channels-last format corrupts memory on CPU (seen with torch 2.13)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: MakeNorm) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        out: Tensor = norm(conv(x[..., :: self.stride, :: self.stride]))
        return out


class CowproBlock(nn.Module):
    """Two 3×3 convolutions (depth 18), or 1×1 – 3×3 – 1×1 with four times the channels (50, 101)."""

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, bottleneck: bool, norm: MakeNorm
    ) -> None:
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        wide = partial(_conv3, outputs=width, stride=stride, dilation=dilation)
        if bottleneck:
            self.conv1, self.conv2 = nn.Conv2d(inputs, width, 1, bias=False), wide(width)
            self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), norm(outputs)
        else:
            self.conv1, self.conv2 = wide(inputs), _conv3(width, width, 1, dilation)
        self.bn1, self.bn2 = norm(width), norm(width)
        self.bottleneck = bottleneck
        changes = stride != 1 or inputs != outputs
        self.downsample = Shortcut(inputs, outputs, stride, norm) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        beside = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.bottleneck:
            x = self.bn3(self.conv3(F.relu(x)))
        return F.relu(x + beside)


def _conv3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)


class CowproEncoder(nn.Module):
    """(B, in_channels, H, W), multiples of 8 → NetOutput whose `logits` are features (B, 256, H/8, W/8)."""

    def __init__(self, in_channels: int, width: int, depth: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False), norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self._inputs, bottleneck = width, depth > 18
        stages = [
            self._stage(
                width * 2**i, count, STRIDES[i], DILATIONS[max(0, i - 1)], DILATIONS[i], bottleneck, norm
            )
            for i, count in enumerate(BLOCKS[depth])
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.project = nn.Conv2d(self._inputs, FEATURES, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(
        self,
        width: int,
        count: int,
        stride: int,
        before: int,
        dilation: int,
        bottleneck: bool,
        norm: MakeNorm,
    ) -> nn.Sequential:
        blocks = []
        for i in range(count):
            blocks.append(
                CowproBlock(
                    self._inputs, width, 1 if i else stride, dilation if i else before, bottleneck, norm
                )
            )
            self._inputs = width * (4 if bottleneck else 1)
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> NetOutput:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return NetOutput(self.project(x))


def cowpro_encoder(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    img_size: Sequence[int] = (),
    weights_folder: Path | None = None,
    *,
    width: int = 64,
    norm: str = "group",
    depth: int = 101,
    encoder_weights: str = "",
    encoder_weights_sha256: str = "",
) -> CowproEncoder:
    """The encoder of these settings. `out_channels` and `img_size` are unused: features know no classes.

    `encoder_weights`: the name of a file of pretrained weights in `weights_folder` (None: they are not read,
    because a checkpoint follows). The weights require their own depth, width 64 and norm `batch`. Raises
    ConfigError for settings that contradict each other and for a file that does not fit.
    """
    _check(spatial_dims, width, norm, depth, bool(encoder_weights))
    if not encoder_weights:
        return CowproEncoder(in_channels, width, depth, partial(nn.GroupNorm, math.gcd(width, GROUPS)))
    network = CowproEncoder(in_channels, width, depth, FrozenBatchNorm)
    if weights_folder is not None:
        file = weights_folder / encoder_weights
        _load(network, read_weights(str(file), encoder_weights_sha256, KEY), in_channels)
    return network


def _check(spatial_dims: int, width: int, norm: str, depth: int, pretrained: bool) -> None:
    if spatial_dims != 2:
        raise ConfigError(
            "cowpro_encoder is a 2-D network",
            key="task.spatial_dims",
            value=spatial_dims,
            remedy="Write 2; for volumes give task.slice_axis, the axis they are sliced along.",
        )
    if depth not in BLOCKS:
        raise ConfigError("must be 18, 50 or 101", key="network.options.depth", value=depth)
    if pretrained and width != PRETRAINED_WIDTH:
        raise ConfigError(
            f"pretrained weights are of width {PRETRAINED_WIDTH}",
            key="network.width",
            value=width,
            remedy=f"Write {PRETRAINED_WIDTH}, or remove {KEY}.",
        )
    if (norm == "batch") != pretrained:
        kind = "pretrained" if pretrained else "random"
        raise ConfigError(
            f"the encoder with {kind} weights does not work with this norm",
            key="network.norm",
            value=norm,
            remedy=f"Write group for random weights; batch (frozen) where {KEY} is given.",
        )


def _load(network: CowproEncoder, found: dict[str, Tensor], in_channels: int) -> None:
    """Fill everything but the projection. Raises ConfigError for a missing tensor or another shape."""
    ours = network.state_dict()
    theirs = {name.removeprefix("module.").removeprefix("backbone."): t for name, t in found.items()}
    theirs = {name: t for name, t in theirs.items() if not name.startswith(IGNORED)}
    first = theirs.get("conv1.weight")
    if in_channels == 1 and first is not None and first.shape[1:2] == (3,):
        theirs["conv1.weight"] = first.sum(1, keepdim=True)  # as if the grey image came three times
    for name, tensor in ours.items():
        if name.startswith("project."):
            continue
        shape = tuple(theirs[name].shape) if name in theirs else None
        if shape != tuple(tensor.shape):
            raise ConfigError(
                f"the weights do not fit: {name} must be {tuple(tensor.shape)}, "
                + ("and is not there" if shape is None else f"and is {shape}"),
                key=KEY,
                remedy="Use a ResNet of network.options.depth in torchvision's naming.",
            )
        tensor.copy_(theirs[name])  # a state dict shares its memory with the network
