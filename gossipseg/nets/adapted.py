"""Transformer networks with adapters in their encoders: what FedSCA trains.

The three constructors' keywords are the options that peers.yaml may give (registry.py reads them off the
signatures), so that each spells out its own list. An encoder is frozen only where its weights were given, as
a local file: a frozen random encoder would be useless. It then trains nothing but its adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.nets import UNETR, SwinUNETR
from torch import Tensor, nn

from gossipseg.errors import ConfigError
from gossipseg.nets.adapters import KEY, adapt, all_but_low, load_encoder
from gossipseg.nets.pretrained import read_weights
from gossipseg.nets.sam_encoder import SamImageEncoder, fitted

Norm = str | tuple[str, dict[str, Any]]
Weights = Mapping[str, Tensor]
Fit = Callable[[Weights, nn.Module], Weights]
"""A function that converts a file's tensors to suit an encoder."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The file of an encoder's weights: its name and checksum are part of the contract, its folder is not.

    `name` "": there is no such file. `folder` None: the weights are not read, because a checkpoint follows
    that holds them.
    """

    name: str
    sha256: str
    folder: Path | None

    def load_into(self, encoder: nn.Module, prefix: str, fit: Fit) -> None:
        """Put the file's tensors into the encoder, after `fit`, and freeze it.

        `prefix`: of the encoder's tensors in a whole network's file. Raises ConfigError where the file is
        missing, is another one, or does not fit.
        """
        if Path(self.name).name != self.name:
            raise ConfigError(
                "is a path",
                key=KEY,
                value=self.name,
                remedy="Give the file's name alone: each site has it in its own data folder (data.path).",
            )
        if not self.sha256:
            raise ConfigError(
                "is missing: all sites need the very same weights",
                key=f"{KEY}_sha256",
                remedy=f"Give the output of `sha256sum {self.name}`.",
            )
        if self.folder is not None:
            file = self.folder / self.name
            load_encoder(encoder, read_weights(str(file), self.sha256, KEY), prefix, file, fit)
        encoder.requires_grad_(False)


def _equip(
    encoder: nn.Module,
    blocks: Sequence[nn.Module],
    adapter_width: int,
    adapter_scale: float,
    weights: Pretrained,
    prefix: str,
    fit: Fit = lambda found, encoder: found,
) -> None:
    """Load pretrained weights where a file of them is named, then put an adapter after each layer of
    `blocks`."""
    if weights.name:
        weights.load_into(encoder, prefix, fit)
    adapt(blocks, adapter_width, adapter_scale)


def adapted_unetr(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    img_size: Sequence[int],
    weights_folder: Path | None = None,
    *,
    feature_size: int = 16,
    norm_name: Norm = "instance",
    dropout_rate: float = 0.0,
    hidden_size: int = 192,
    mlp_dim: int | None = None,
    num_heads: int = 6,
    qkv_bias: bool = False,
    adapter_width: int = 64,
    adapter_scale: float = 1.0,
    encoder_weights: str = "",
    encoder_weights_sha256: str = "",
) -> nn.Module:
    """UNETR, adapted: (B, in_channels, *img_size) to logits; twelve blocks, patches of 16 voxels.

    `hidden_size`, `mlp_dim`: widths of the encoder. `adapter_width`, `adapter_scale`: h, s of its adapters.
    `encoder_weights`, `encoder_weights_sha256`: a file in `weights_folder`, see Pretrained.
    """
    network = UNETR(
        in_channels,
        out_channels,
        tuple(img_size),
        feature_size,
        hidden_size,
        4 * hidden_size if mlp_dim is None else mlp_dim,
        num_heads,
        norm_name=norm_name,
        dropout_rate=dropout_rate,
        spatial_dims=spatial_dims,
        qkv_bias=qkv_bias,
    )
    encoder = network.vit
    for block in encoder.blocks:
        block.norm_cross_attn = nn.Identity()  # of an attention that a ViT does not have
    weights = Pretrained(encoder_weights, encoder_weights_sha256, weights_folder)
    _equip(encoder, list(encoder.blocks), adapter_width, adapter_scale, weights, "vit.")
    return _declared(network)


def adapted_swinunetr(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    img_size: Sequence[int] = (),
    weights_folder: Path | None = None,
    *,
    feature_size: int = 24,
    norm_name: Norm = "instance",
    drop_rate: float = 0.0,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: Sequence[int] | int = 7,
    qkv_bias: bool = True,
    mlp_ratio: float = 4.0,
    use_v2: bool = False,
    adapter_width: int = 64,
    adapter_scale: float = 1.0,
    encoder_weights: str = "",
    encoder_weights_sha256: str = "",
) -> nn.Module:
    """SwinUNETR, adapted: (B, in_channels, *spatial), each axis a multiple of 32, to logits.

    Options as of adapted_unetr(); `depths`, `num_heads`: blocks and heads of the four stages.
    """
    network = SwinUNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        feature_size=feature_size,
        norm_name=norm_name,
        drop_rate=drop_rate,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        qkv_bias=qkv_bias,
        mlp_ratio=mlp_ratio,
        use_v2=use_v2,
        spatial_dims=spatial_dims,
    )
    encoder = network.swinViT
    stages = (encoder.layers1, encoder.layers2, encoder.layers3, encoder.layers4)
    blocks = [block for stage in stages for block in stage[0].blocks]
    weights = Pretrained(encoder_weights, encoder_weights_sha256, weights_folder)
    _equip(encoder, blocks, adapter_width, adapter_scale, weights, "swinViT.")
    return _declared(network)


class SamSegmenter(nn.Module):
    """A SAM image encoder and a decoder: (B, C, H, W) to logits (B, out_channels, H, W).

    A single channel is given to all three of the encoder's. The decoder doubles the features four times to
    the image's size. The last doubling also sees features of the image itself, whose outlines a token of 16
    pixels has lost.
    """

    def __init__(
        self,
        encoder: SamImageEncoder,
        in_channels: int,
        out_channels: int,
        width: int,
        norm_name: Norm,
        dropout_rate: float,
    ) -> None:
        super().__init__()
        self.image_encoder = encoder
        features = encoder.neck[0].out_channels
        shape: dict[str, Any] = {"kernel_size": 3, "norm_name": norm_name}
        self.outlines = UnetrBasicBlock(2, in_channels, width, stride=1, res_block=True, **shape)
        self.upward = UnetrPrUpBlock(
            2, features, 4 * width, num_layer=2, stride=1, upsample_kernel_size=2, res_block=True, **shape
        )
        self.joined = UnetrUpBlock(2, 4 * width, width, upsample_kernel_size=2, res_block=True, **shape)
        self.dropout = nn.Dropout2d(dropout_rate)
        self.out = UnetOutBlock(2, width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        features = self.dropout(self.image_encoder(x.expand(-1, 3, -1, -1)))
        logits: Tensor = self.out(self.joined(self.upward(features), self.outlines(x)))
        return logits


def adapted_sam(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    img_size: Sequence[int],
    weights_folder: Path | None = None,
    *,
    feature_size: int = 16,
    norm_name: Norm = "instance",
    dropout_rate: float = 0.0,
    hidden_size: int = 192,
    depth: int = 12,
    mlp_dim: int | None = None,
    num_heads: int = 6,
    window_size: int = 14,
    global_blocks: Sequence[int] = (2, 5, 8, 11),
    adapter_width: int = 64,
    adapter_scale: float = 1.0,
    encoder_weights: str = "",
    encoder_weights_sha256: str = "",
) -> nn.Module:
    """A SAM image encoder, adapted, with a decoder: (B, 1 or 3, *img_size) to logits; 2-D, multiples of 16.

    For the published base file (`sam_vit_b`, and medical ones tuned from it): hidden_size 768, num_heads 12.
    Options as of adapted_unetr(); `dropout_rate`: of whole feature maps, between encoder
    and decoder; `window_size`, `global_blocks`: tokens of a window's side, and the blocks
    that attend to the whole image. Raises ValueError for sizes that do not fit.
    """
    if spatial_dims != 2 or in_channels not in (1, 3):
        raise ValueError(
            f"a SAM image encoder takes 2-D images of 1 or 3 channels, not {spatial_dims}-D of {in_channels}"
        )
    encoder = SamImageEncoder(
        img_size,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=4 * hidden_size if mlp_dim is None else mlp_dim,
        window_size=window_size,
        global_blocks=global_blocks,
    )
    weights = Pretrained(encoder_weights, encoder_weights_sha256, weights_folder)
    _equip(encoder, list(encoder.blocks), adapter_width, adapter_scale, weights, "image_encoder.", fitted)
    return _declared(SamSegmenter(encoder, in_channels, out_channels, feature_size, norm_name, dropout_rate))


def _declared(network: Any) -> nn.Module:
    """Declare private to a site all but the low adapters."""
    network.private_parts = tuple(all_but_low(network))
    assert isinstance(network, nn.Module)
    return network
