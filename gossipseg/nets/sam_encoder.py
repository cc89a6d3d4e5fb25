"""The image encoder of the Segment Anything Model, so that a file of its weights (or of one tuned on medical
images) can be read.

Kirillov et al., Segment Anything, arXiv 2304.02643, appendix A: a ViT with windowed attention, global in
every few blocks, and decomposed relative positions (Li et al., MViTv2, arXiv 2112.01526, equation 4):

    softmax( (q·kᵀ)/√d + E ),   E_ij = q_i·R^h_{h(i)−h(j)} + q_i·R^w_{w(i)−w(j)}                           (1)

MONAI's ViT has neither the windows nor the positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 16
"""Pixels of a token's side."""
_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels: (B, C, H, W) → the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Attention(nn.Module):
    """Equation (1) over a grid of tokens: (B, H, W, C) → the same; `size` is (H, W)."""

    def __init__(self, channels: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size[0] - 1, channels // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size[1] - 1, channels // heads))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self._positions(q, h, w))
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, h, w, c))
        return projected

    def _positions(self, q: Tensor, h: int, w: int) -> Tensor:
        """E of equation (1): (B, heads, H·W, H·W)."""
        grid = q.reshape(*q.shape[:2], h, w, -1)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, _by_distance(self.rel_pos_h, h))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, _by_distance(self.rel_pos_w, w))
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


def _by_distance(table: Tensor, size: int) -> Tensor:
    """(2·size − 1, d) → (size, size, d): the entry of each pair's distance i − j."""
    at = torch.arange(size, device=table.device)
    return table[at[:, None] - at[None, :] + size - 1]


class Mlp(nn.Module):
    """Two layers on the last axis, with the names of the published files."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class SamBlock(nn.Module):
    """Attention and MLP, each on the residual stream: (B, H, W, C) → the same. `window` 0: global."""

    def __init__(self, channels: int, heads: int, mlp_dim: int, grid: tuple[int, int], window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=_EPS) for _ in range(2))
        self.attn = Attention(channels, heads, (window, window) if window else grid)
        self.mlp = Mlp(channels, mlp_dim)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + (self._in_windows(normed) if self.window else self.attn(normed))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _in_windows(self, x: Tensor) -> Tensor:
        """Attention within windows; the grid is padded with zeros to whole ones."""
        (b, h, w, c), s = x.shape, self.window
        x = F.pad(x, (0, 0, 0, -w % s, 0, -h % s))
        rows, columns = x.shape[1] // s, x.shape[2] // s
        windows = x.reshape(b, rows, s, columns, s, c).transpose(2, 3).reshape(-1, s, s, c)
        joined = self.attn(windows).reshape(b, rows, columns, s, s, c).transpose(2, 3)
        whole: Tensor = joined.reshape(b, rows * s, columns * s, c)[:, :h, :w]
        return whole


class _Patches(nn.Module):
    """(B, 3, H, W) → tokens (B, H/16, W/16, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, STRIDE, STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x).movedim(1, -1)
        return tokens


class SamImageEncoder(nn.Module):
    """(B, 3, H, W), both sides multiples of 16 and as in `img_size`, to (B, out_channels, H/16, W/16)."""

    def __init__(
        self,
        img_size: Sequence[int],
        *,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        window_size: int = 14,
        global_blocks: Sequence[int] = (2, 5, 8, 11),
        out_channels: int = 256,
    ) -> None:
        """Defaults: the published base encoder's. Raises ValueError for sizes that do not fit."""
        super().__init__()
        height, width = img_size
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"task.patch_size {list(img_size)} must be multiples of {STRIDE}")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is no multiple of num_heads {num_heads}")
        grid = (height // STRIDE, width // STRIDE)
        self.patch_embed = _Patches(hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, hidden_size))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            SamBlock(hidden_size, num_heads, mlp_dim, grid, 0 if i in global_blocks else window_size)
            for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(hidden_size, out_channels, 1, bias=False),
            ChannelNorm(out_channels, eps=_EPS),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels, eps=_EPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.neck(x.movedim(-1, 1))
        return features


def fitted(found: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """The file's tensors with its position tables resampled to the encoder's image size.

    Published files are of images of 1024². Absolute positions are resampled on their grid, relative ones
    along their distances. Other tensors, and unrecognised ones, stay as they are.
    """
    wanted = encoder.state_dict()
    return {name: _resampled(name, tensor, wanted.get(name)) for name, tensor in found.items()}


def _resampled(name: str, tensor: Tensor, like: Tensor | None) -> Tensor:
    if like is None or like.shape == tensor.shape or like.dim() != tensor.dim():
        return tensor
    if name == "pos_embed" and like.shape[-1] == tensor.shape[-1]:
        grid = F.interpolate(tensor.movedim(-1, 1).float(), like.shape[1:3], mode="bicubic")
        return grid.movedim(1, -1)
    if name.rpartition(".")[2] in ("rel_pos_h", "rel_pos_w") and like.shape[-1] == tensor.shape[-1]:
        return F.interpolate(tensor.T[None].float(), like.shape[0], mode="linear")[0].T
    return tensor
