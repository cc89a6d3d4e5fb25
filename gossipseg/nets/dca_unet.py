"""The U-Net of FedOAP (arXiv 2511.18847): two bottlenecks, cross-attention between them, a spatial adapter.

The structure [P] is the paper's figure, written anew. Widths are w, 2w, 4w, 8w, bottlenecks 16w (w = 64
there):

    block       (conv3 – norm – ReLU) twice; halved by max-pooling, doubled by ConvTranspose; skips beside
    bottlenecks z_q and z_kv: two blocks beside each other from the same pooled map of 8w channels
    attention   Q = W_q·z_q,  K = W_k·z_kv,  V = W_v·z_kv          (1×1 convolutions, one head, d = 16w)   (1)
                ẑ = GroupNorm(W_o·softmax(QᵀK/√d)V + z_q)  → decoder                                       (2)
    adapter     φ(x) = ReLU(norm·conv3·ReLU·norm·conv3·x + norm·conv1·x) on the last map of w channels     (3)
    head        1×1 after dropout (the paper has none: dropout 0)

The Q-bottleneck, W_q, the adapter and the head are private to a site; the rest is shared. (2) has 8 groups
[O].
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Dropout, Pool
from torch import Tensor, nn

from gossipseg.nets.output import NetOutput
from gossipseg.nets.sanet import Layers, with_and_without

SCALES = 4
"""Scales before the bottleneck."""
MAX_GROUPS = 8


class DoubleBlock(nn.Sequential):
    """(conv3 – norm – ReLU) twice."""

    def __init__(self, layers: Layers, inputs: int, outputs: int) -> None:
        super().__init__(
            layers.conv_norm_relu(inputs, outputs, 3), layers.conv_norm_relu(outputs, outputs, 3)
        )


class CrossAttention(nn.Module):
    """Equations (1) and (2), without W_q, which is private to a site and kept separately."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.key, self.value = layers.conv(channels, channels, 1), layers.conv(channels, channels, 1)
        self.out = layers.conv(channels, channels, 1)
        self.norm = nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)

    def forward(self, query: Tensor, z_q: Tensor, z_kv: Tensor) -> Tensor:
        """Q = W_q·z_q, z_q and z_kv, all (B, d, *spatial), to ẑ of the same shape."""
        attended = attention(query, self.key(z_kv), self.value(z_kv))
        normed: Tensor = self.norm(self.out(attended) + z_q)
        return normed


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(QᵀK/√d)·V of maps (B, d, *spatial): every voxel of `query` looks at every voxel of `key`."""
    q, k, v = (x.flatten(2).transpose(1, 2) for x in (query, key, value))
    seen = F.scaled_dot_product_attention(q, k, v)
    return seen.transpose(1, 2).reshape(query.shape)


class SpatialAdapter(nn.Module):
    """Equation (3): a residual block that adapts the shared map to the site's own organ."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.first = layers.conv_norm_relu(channels, channels, 3)
        self.conv, self.norm = layers.conv(channels, channels, 3), layers.norm_of(channels)
        self.shortcut = nn.Sequential(layers.conv(channels, channels, 1), layers.norm_of(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(self.first(x))) + self.shortcut(x))


class DcaUNet(nn.Module):
    """Input (B, in_channels, *spatial), each axis a multiple of 16, at least 32; output NetOutput."""

    private_parts = ("query_bottleneck", "query", "adapter", "head")
    """ρ_k of the paper: never leaves the site."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        dropout: float = 0.0,
        norm: str | tuple[str, dict[str, object]] = ("instance", {"affine": True}),
    ) -> None:
        super().__init__()
        layers = Layers(spatial_dims, norm)
        widths = [width * 2**scale for scale in range(SCALES + 1)]
        self.encoder = nn.ModuleList(
            DoubleBlock(layers, inputs, outputs) for inputs, outputs in pairwise([in_channels, *widths[:-1]])
        )
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        bottom = widths[-1]
        self.query_bottleneck = DoubleBlock(layers, widths[-2], bottom)
        self.key_value_bottleneck = DoubleBlock(layers, widths[-2], bottom)
        self.query = layers.conv(bottom, bottom, 1)
        self.attention = CrossAttention(layers, bottom)
        self.ups = nn.ModuleList(layers.up(coarse, fine) for fine, coarse in pairwise(widths))
        self.decoder = nn.ModuleList(DoubleBlock(layers, 2 * w, w) for w in widths[:-1])
        self.adapter = SpatialAdapter(layers, width)
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.head = layers.conv(width, out_channels, 1, bias=True)

    def forward(self, x: Tensor) -> NetOutput:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
            x = self.pool(x)
        z_q, z_kv = self.query_bottleneck(x), self.key_value_bottleneck(x)
        x = self.attention(self.query(z_q), z_q, z_kv)
        for scale in reversed(range(SCALES)):
            x = self.decoder[scale](torch.cat([skips[scale], self.ups[scale](x)], dim=1))
        x = self.adapter(x)
        if not self.training:
            return NetOutput(self.head(x))
        logits, clean = with_and_without(self.dropout, self.head, x)
        return NetOutput(logits, clean=clean)
