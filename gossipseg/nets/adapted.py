"""MONAI's transformer networks with adapters in their encoders: what FedSCA trains.

What belongs here: UNETR and SwinUNETR, adapted, and their own options. What must not: the adapter itself
(adapters.py), aggregation.

The encoder is frozen only where its weights were given, as a local file: a frozen random encoder would be
useless. It then trains nothing but its adapters. A SAM image encoder does not fit: MONAI's ViT has neither
its relative positions nor its windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from gossipseg.errors import ConfigError
from gossipseg.nets.adapters import KEY, adapt, all_but_low, load_encoder
from gossipseg.nets.pretrained import read_weights

Norm = str | tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The file of an encoder's weights: its name and checksum are part of the contract, its folder is not.

    `folder` None: the weights are not read, because a checkpoint follows that holds them.
    """

    name: str
    sha256: str
    folder: Path | None

    def load_into(self, encoder: nn.Module, prefix: str) -> None:
        """Raises ConfigError where the file is missing, another one, or does not fit."""
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
            load_encoder(encoder, read_weights(str(file), self.sha256, KEY), prefix, file)
        encoder.requires_grad_(False)


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
    if encoder_weights:
        Pretrained(encoder_weights, encoder_weights_sha256, weights_folder).load_into(encoder, "vit.")
    adapt(list(encoder.blocks), adapter_width, adapter_scale)
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
    if encoder_weights:
        Pretrained(encoder_weights, encoder_weights_sha256, weights_folder).load_into(encoder, "swinViT.")
    stages = (encoder.layers1, encoder.layers2, encoder.layers3, encoder.layers4)
    adapt([block for stage in stages for block in stage[0].blocks], adapter_width, adapter_scale)
    return _declared(network)


def _declared(network: Any) -> nn.Module:
    """All but the low adapters is a site's own."""
    network.private_parts = tuple(all_but_low(network))
    assert isinstance(network, nn.Module)
    return network
