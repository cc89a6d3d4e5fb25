"""The SAM image encoder: equation (1) by hand, windows, the names and tables of published files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gossipseg.errors import ConfigError
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.registry import build
from gossipseg.nets.sam_encoder import Attention, SamBlock, SamImageEncoder, fitted


def small(side: int = 64, **options: Any) -> SamImageEncoder:
    shape: dict[str, Any] = {"hidden_size": 12, "depth": 2, "num_heads": 2, "mlp_dim": 16, "window_size": 3}
    torch.manual_seed(0)
    return SamImageEncoder((side, side), **{**shape, "global_blocks": (1,), "out_channels": 5, **options})


def test_equation_1_pair_by_pair() -> None:
    torch.manual_seed(1)
    heads, h, w, channels = 2, 2, 3, 8
    attention, d = Attention(channels, heads, (h, w)), channels // heads
    for table in (attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    x = torch.randn(1, h, w, channels)
    qkv = attention.qkv(x)[0].reshape(h * w, 3, heads, d)
    out = torch.zeros(h * w, heads, d)
    for n in range(heads):
        q, k, v = qkv[:, 0, n], qkv[:, 1, n], qkv[:, 2, n]
        scores = torch.zeros(h * w, h * w)
        for i in range(h * w):
            for j in range(h * w):
                rows = attention.rel_pos_h[i // w - j // w + h - 1]
                columns = attention.rel_pos_w[i % w - j % w + w - 1]
                scores[i, j] = q[i] @ k[j] / d**0.5 + q[i] @ rows + q[i] @ columns
        out[:, n] = scores.softmax(1) @ v
    expected = attention.proj(out.reshape(h, w, channels))
    torch.testing.assert_close(attention(x)[0], expected)


def test_attention_stays_within_its_window() -> None:
    torch.manual_seed(2)
    block = SamBlock(8, 2, 16, (6, 6), 3)
    x = torch.randn(1, 6, 6, 8)
    changed = x.clone()
    changed[0, 0, 0, 0] += 1.0
    moved = (block(changed) - block(x)).abs().sum(-1)[0] > 1e-6
    assert moved[:3, :3].all() and not moved[3:].any() and not moved[:, 3:].any()
    everywhere = SamBlock(8, 2, 16, (6, 6), 0)
    assert ((everywhere(changed) - everywhere(x)).abs().sum(-1)[0] > 1e-7).all()


def test_a_grid_that_is_no_multiple_of_the_window() -> None:
    assert small(64)(torch.randn(2, 3, 64, 64)).shape == (2, 5, 4, 4)


def test_names_and_shapes_of_the_published_base_file() -> None:
    with torch.device("meta"):
        state = SamImageEncoder((1024, 1024)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["pos_embed"] == (1, 64, 64, 768)
    assert shapes["patch_embed.proj.weight"] == (768, 3, 16, 16)
    assert shapes["blocks.0.attn.rel_pos_h"] == (27, 64)
    assert shapes["blocks.2.attn.rel_pos_w"] == (127, 64)
    assert shapes["blocks.11.attn.qkv.weight"] == (2304, 768)
    assert shapes["blocks.7.mlp.lin1.weight"] == (3072, 768)
    assert shapes["neck.0.weight"] == (256, 768, 1, 1) and shapes["neck.2.weight"] == (256, 256, 3, 3)
    assert shapes["neck.1.weight"] == shapes["neck.3.bias"] == (256,)
    assert sum(t.numel() for t in state.values()) == 89_670_912


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in a whole model's file: the encoder behind its prefix, beside the mask decoder."""
    return {f"image_encoder.{name}": tensor for name, tensor in state.items()} | {
        "mask_decoder.iou_token.weight": torch.zeros(1, 8)
    }


def test_a_file_of_larger_images_is_fitted(tmp_path: Path) -> None:
    options = {"hidden_size": 12, "depth": 2, "num_heads": 2, "mlp_dim": 16, "window_size": 3}
    large = small(128, out_channels=256)
    for parameter in large.parameters():
        torch.nn.init.normal_(parameter)
    file = tmp_path / "sam.pth"
    torch.save(published(large.state_dict()), file)
    named = {
        "encoder_weights": file.name,
        "encoder_weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    params = NetworkParams(
        "adapted_sam", width=2, options={**options, **named, "global_blocks": [1], "adapter_width": 3}
    )
    shape: dict[str, Any] = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "weights_folder": tmp_path,
    }
    net = build(params, patch_size=(64, 64), **shape)
    loaded = net.network.image_encoder
    assert loaded.pos_embed.shape == (1, 4, 4, 12) and loaded.blocks[1].attn.layer.rel_pos_h.shape == (7, 6)
    assert torch.equal(loaded.blocks[0].attn.layer.rel_pos_h, large.blocks[0].attn.rel_pos_h)
    assert not loaded.pos_embed.requires_grad
    with pytest.raises(ConfigError, match=r"sam\.pth.*in the network"):
        build(
            NetworkParams("adapted_sam", width=2, options={**params.options, "hidden_size": 24}),
            patch_size=(64, 64),
            **shape,
        )


def test_resampled_tables_keep_what_is_linear() -> None:
    """A table that grows evenly with the distance still does, at another step."""
    encoder = small(64)
    table = torch.linspace(-1, 1, 15)[:, None].expand(15, 6)
    got = fitted({"blocks.1.attn.rel_pos_h": table}, encoder)["blocks.1.attn.rel_pos_h"]
    assert got.shape == (7, 6)
    steps = got[1:, 0] - got[:-1, 0]
    torch.testing.assert_close(steps, steps[:1].expand(6))
    torch.testing.assert_close(got[3], torch.zeros(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("dims", "channels", "patch", "message"),
    [
        (3, 1, (32, 32, 32), "2-D images of 1 or 3 channels"),
        (2, 2, (32, 32), "2-D images of 1 or 3 channels"),
    ],
)
def test_what_the_encoder_cannot_take(dims: int, channels: int, patch: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(
            NetworkParams("adapted_sam", width=2),
            spatial_dims=dims,
            in_channels=channels,
            out_channels=2,
            patch_size=patch,
        )
