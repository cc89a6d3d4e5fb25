"""Adapters for transformer encoders, as FedSCA (arXiv 2503.15390) tunes them.

    Adapter(x) = x + s·Up(GELU(Down(x)))        Down: C → h, Up: h → C, zero at first                      (1)

Standing: [S] light adapters in the blocks, the rest frozen; [O] equation (1) and its places, after attention
and after the MLP of each block, on their outputs, before these are added to the residual stream (Houlsby
2019, arXiv 1902.00751). Low is the first half of the blocks. At the beginning an adapted network computes
what it did without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gossipseg.errors import ConfigError

LOW, HIGH = "low_adapter", "high_adapter"
"""Names of the adapters within their blocks: parts of the names of their tensors."""
KEY = "network.options.encoder_weights"


class Adapter(nn.Module):
    """Equation (1), on the last axis: (…, C) → (…, C)."""

    def __init__(self, channels: int, width: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.up(F.gelu(self.down(x)))
        return x + self.scale * change


class Adapted(nn.Module):
    """A layer of a transformer block, followed by its adapter."""

    def __init__(self, layer: nn.Module, adapter: Adapter, kind: str) -> None:
        super().__init__()
        self.layer = layer
        self.add_module(kind, adapter)
        self._kind = kind

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        adapted: Tensor = self.get_submodule(self._kind)(self.layer(*args, **kwargs))
        return adapted


def adapt(blocks: Sequence[nn.Module], width: int, scale: float) -> None:
    """Put an adapter after the `attn` and the `mlp` of each block of an encoder, given from low to high."""
    for i, block in enumerate(blocks):
        kind = LOW if i < len(blocks) // 2 else HIGH
        norm = block.norm1
        assert isinstance(norm, nn.LayerNorm)
        for name in ("attn", "mlp"):
            adapter = Adapter(norm.normalized_shape[0], width, scale)
            setattr(block, name, Adapted(block.get_submodule(name), adapter, kind))


def all_but_low(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the modules and parameters that a site keeps.

    They are the largest modules without a low adapter in them, and the parameters beside such.
    """
    yield from (f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if name == LOW:
            continue
        if any(inner.rpartition(".")[2] == LOW for inner, _ in child.named_modules()):
            yield from all_but_low(child, f"{path}.")
        else:
            yield path


def load_encoder(
    encoder: nn.Module,
    found: Mapping[str, Tensor],
    prefix: str,
    file: object,
    fit: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]],
) -> None:
    """Put pretrained weights into an encoder that has no adapters yet.

    `found`: the file's tensors, named as the encoder's. A name may begin with `module.` or `prefix` (as in a
    whole network), and have `mlp.fc1` and `mlp.fc2` as in MONAI's published Swin weights. Other tensors, such
    as heads, are ignored. `fit`: what a format needs done to its tensors. Raises ConfigError where one is
    missing or has another shape.
    """
    plain = fit({_plain(name, prefix): tensor for name, tensor in found.items()}, encoder)
    wanted = encoder.state_dict()
    for name, tensor in wanted.items():
        if name not in plain:
            raise _misfit(f"lacks {name}: its weights are not of this encoder", file)
        if plain[name].shape != tensor.shape:
            shapes = f"{list(plain[name].shape)} in the file, {list(tensor.shape)} in the network"
            raise _misfit(f"{name} is {shapes}", file)
    encoder.load_state_dict({name: plain[name] for name in wanted})


def _plain(name: str, prefix: str) -> str:
    name = name.removeprefix("module.").removeprefix(prefix)
    return name.replace("mlp.fc1.", "mlp.linear1.").replace("mlp.fc2.", "mlp.linear2.")


def _misfit(problem: str, file: object) -> ConfigError:
    return ConfigError(
        problem,
        file=file,
        key=KEY,
        remedy="Choose network.options, task.channels and task.patch_size as the encoder was trained, "
        "or another file.",
    )
