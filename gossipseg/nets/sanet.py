"""SA-Net, the scale-attention network of the group behind GCML (Yuan, BrainLes 2021; arXiv 2503.03883).

The structure [P] is from the papers and the parameter counts of their published code. Everything here is
written anew. Widths are w, 2w, 4w, 8w, centre min(384, 16w). Each halves the resolution of the one before:

    encoder    one residual squeeze-excite block at w, two at 2w, 4w and 8w, one at the centre
    skip s     all four encoder maps E_i brought to scale s, X_i, and weighed against each other:
               g = ReLU(D · pool(Σ_i X_i));  a = softmax over i of U_i · g, per channel;  Σ_i a_i · X_i
    decoder    ConvTranspose 2 – norm – ReLU, *added* skip, one residual squeeze-excite block
    heads      1×1 at full resolution after dropout; 1×1 at each of the three coarser decoder scales
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout, Pool
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from gossipseg.nets.output import NetOutput

SCALES = 4
MAX_CENTRE = 384
REDUCTION = 4
"""r of the squeeze-excite blocks and of the scale attention."""


class Layers(NamedTuple):
    """The layers that depend on the number of spatial dimensions and on the kind of norm."""

    dims: int
    norm: str | tuple[str, dict[str, object]]

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Module:
        make: type[nn.Module] = Conv[Conv.CONV, self.dims]
        return make(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)

    def up(self, inputs: int, outputs: int) -> nn.Module:
        make: type[nn.Module] = Conv[Conv.CONVTRANS, self.dims]
        return make(inputs, outputs, 2, stride=2)

    def norm_of(self, channels: int) -> nn.Module:
        layer: nn.Module = get_norm_layer(self.norm, spatial_dims=self.dims, channels=channels)
        return layer

    def conv_norm_relu(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        block = nn.Sequential()
        block.add_module("conv", self.conv(inputs, outputs, kernel, stride))
        block.add_module("norm", self.norm_of(outputs))
        block.add_module("relu", nn.ReLU(inplace=True))
        return block


class SqueezeExcite(nn.Module):
    """x · σ(U ReLU(D pool(x))), with 1×1 convolutions D: C → C/4 and U: C/4 → C."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.down, self.up = layers.conv(channels, hidden, 1), layers.conv(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(global_pool(x)))))


class ResidualBlock(nn.Module):
    """conv3 – norm – ReLU – conv3 – norm – squeeze-excite – add – ReLU. A 1×1 convolution with norm stands
    beside it if C changes."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = layers.conv_norm_relu(inputs, outputs, 3, stride)
        self.conv, self.norm = layers.conv(outputs, outputs, 3), layers.norm_of(outputs)
        self.excite = SqueezeExcite(layers, outputs)
        # A 1×1 convolution of stride 2 sees every second voxel: taken by slicing instead, because its own
        # backward pass in the channels-last format corrupts memory on CPU (seen with torch 2.13).
        self.every = (slice(None), slice(None), *(slice(None, None, stride),) * layers.dims)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("conv", layers.conv(inputs, outputs, 1))
            self.shortcut.add_module("norm", layers.norm_of(outputs))

    def forward(self, x: Tensor) -> Tensor:
        beside = self.shortcut(x[self.every])
        return F.relu(self.excite(self.norm(self.conv(self.first(x)))) + beside)


class ToScale(nn.Module):
    """Brings a map from one scale to another: max-pooling then conv (down), conv then interpolation (up)."""

    def __init__(self, layers: Layers, widths: list[int], source: int, target: int) -> None:
        super().__init__()
        factor = 2 ** abs(target - source)
        self.pool = Pool[Pool.MAX, layers.dims](factor) if target > source else nn.Identity()
        self.block = layers.conv_norm_relu(widths[source], widths[target], 3)
        self.factor = factor if target < source else 1
        self.mode = "bilinear" if layers.dims == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.pool(x))
        if self.factor == 1:
            return x
        return F.interpolate(x, scale_factor=float(self.factor), mode=self.mode, align_corners=False)


class ScaleAttention(nn.Module):
    """The skip of one scale: all encoder maps there, weighed by a softmax across scales per channel."""

    def __init__(self, layers: Layers, widths: list[int], scale: int) -> None:
        super().__init__()
        channels = widths[scale]
        hidden = max(1, channels // REDUCTION)
        self.to_scale = nn.ModuleList(
            nn.Identity() if source == scale else ToScale(layers, widths, source, scale)
            for source in range(SCALES)
        )
        self.down = layers.conv(channels, hidden, 1)
        self.up = nn.ModuleList(layers.conv(hidden, channels, 1) for _ in range(SCALES))

    def forward(self, maps: list[Tensor]) -> Tensor:
        here = [bring(m) for bring, m in zip(self.to_scale, maps, strict=True)]
        pooled = torch.stack([global_pool(x) for x in here]).sum(dim=0)
        hidden = F.relu(self.down(pooled))
        # autocast computes a softmax in float32; the maps stay in the type they came in
        weights = torch.softmax(torch.stack([up(hidden) for up in self.up]), dim=0).to(hidden.dtype)
        skip: Tensor = weights[0] * here[0]
        for weight, x in zip(weights[1:], here[1:], strict=True):
            skip = skip + weight * x
        return skip


class SANet(nn.Module):
    """Input (B, in_channels, *spatial), each axis a multiple of 16, at least 32; output NetOutput."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        width: int = 12,
        dropout: float = 0.2,
        norm: str | tuple[str, dict[str, object]] = ("instance", {"affine": True}),
    ) -> None:
        super().__init__()
        layers = Layers(spatial_dims, norm)
        widths = [width * 2**s for s in range(SCALES)]
        self.encoder = nn.ModuleList([ResidualBlock(layers, in_channels, width)])
        for fine, coarse in pairwise(widths):
            blocks = ResidualBlock(layers, fine, coarse, stride=2), ResidualBlock(layers, coarse, coarse)
            self.encoder.append(nn.Sequential(*blocks))
        centre = min(MAX_CENTRE, 2 * widths[-1])
        self.centre = ResidualBlock(layers, widths[-1], centre, stride=2)
        self.skips = nn.ModuleList(ScaleAttention(layers, widths, s) for s in range(SCALES))
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in zip(widths, [*widths[1:], centre], strict=True):
            self.ups.append(UpBlock(layers, coarse, fine))
            self.decoder.append(ResidualBlock(layers, fine, fine))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.head = layers.conv(width, out_channels, 1, bias=True)
        self.aux_heads = nn.ModuleList(layers.conv(w, out_channels, 1, bias=True) for w in widths[1:])

    def forward(self, x: Tensor) -> NetOutput:
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        x = self.centre(x)
        decoded: list[Tensor] = []
        for scale in reversed(range(SCALES)):
            x = self.decoder[scale](self.ups[scale](x) + self.skips[scale](maps))
            decoded.insert(0, x)
        if not self.training:
            return NetOutput(self.head(x))
        aux = tuple(head(d) for head, d in zip(self.aux_heads, decoded[1:], strict=True))
        logits, clean = with_and_without(self.dropout, self.head, x)
        return NetOutput(logits, aux, clean)


class UpBlock(nn.Module):
    """ConvTranspose of kernel and stride 2 – norm – ReLU."""

    def __init__(self, layers: Layers, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = layers.up(inputs, outputs), layers.norm_of(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


def with_and_without(dropout: nn.Module, head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head's logits, and detached ones with dropout off (None where the rate is 0).

    Logits with gradients are computed first, because autocast casts a weight once. Before late 2025, torch
    reused a cast made under no_grad, without history, in a call that needs one (pytorch pull request 165068).
    """
    logits: Tensor = head(dropout(x))
    with torch.no_grad():
        clean: Tensor | None = head(x) if dropout.p else None
    return logits, clean


def global_pool(x: Tensor) -> Tensor:
    """Mean over space: (B, C, *spatial) → (B, C, 1, …)."""
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)
