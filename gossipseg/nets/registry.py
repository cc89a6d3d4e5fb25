"""Which settings build which network: MONAI's, and our own."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn

from gossipseg.errors import ConfigError
from gossipseg.nets import sam_encoder
from gossipseg.nets.adapted import adapted_sam, adapted_swinunetr, adapted_unetr
from gossipseg.nets.cowpro_encoder import STRIDE, cowpro_encoder
from gossipseg.nets.dca_unet import DcaUNet
from gossipseg.nets.output import NetOutput
from gossipseg.nets.params import NETWORK_GROUP, NetworkParams, network_names
from gossipseg.nets.sanet import SANet
from gossipseg.nets.segmenter import DynUNetSegmenter, FeatureMaps, Segmenter, SelfDescribing

__all__ = ["NetOutput", "Segmenter", "build", "check_patch", "initialise", "names", "network_signature"]
__all__ += ["norm_parameter_names", "private_names", "stride_product"]

MIN_BOTTLENECK = 2
"""Voxels per axis that must be left at the coarsest scale: instance norm of one voxel is always zero."""
FROM_THE_TASK = ("spatial_dims", "in_channels", "out_channels")
UNETR_HIDDEN = 12
"""Width of a UNETR's encoder per width of its decoder, unless network.options says otherwise."""
OF_PRETRAINABLE = ("img_size", "weights_folder")
"""Further arguments of networks with a pretrained encoder: the padded patch, the file's folder."""

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """One network: its constructor, and how settings become arguments."""

    constructor: Callable[..., nn.Module]
    arguments: Callable[[NetworkParams, int], Arguments]
    """(settings, spatial dimensions) → constructor arguments, without those that come from the task."""
    strides: Callable[[Arguments], Sequence[int | Sequence[int]]]
    """The stride of each downsampling, one number or one for each axis."""
    segmenter: type[Segmenter] = Segmenter
    takes_options: bool = True
    width_step: int = 1
    """The width must be a multiple of this."""
    norms: tuple[str, ...] = ("instance", "group", "batch")
    pretrainable: bool = False
    """Whether the constructor takes OF_PRETRAINABLE, too."""
    least_cells: int = MIN_BOTTLENECK
    """Voxels per axis that must be left at the coarsest scale."""


def names() -> list[str]:
    """Networks that can be built."""
    return list(network_names())


def build(
    params: NetworkParams,
    *,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    patch_size: Sequence[int],
    weights_folder: Path | None = None,
) -> Segmenter:
    """The network of these settings, on the CPU, in training mode, with torch's present random state.

    `weights_folder`: the folder of the pretrained weights that the options name. None leaves them out,
    because a checkpoint follows. Raises ConfigError (keys `network.…`, `task.patch_size`) for an unknown name
    or option, and for values that the network does not accept. It also refuses a patch that leaves under two
    voxels at the coarsest scale.
    """
    check_patch(params, spatial_dims=spatial_dims, patch_size=patch_size)
    entry = _entry(params)
    arguments = _arguments(params, spatial_dims)
    task: Arguments = dict(zip(FROM_THE_TASK, (spatial_dims, in_channels, out_channels), strict=True))
    stride = stride_product(params, spatial_dims=spatial_dims)
    if entry.pretrainable:
        padded = [math.ceil(n / s) * s for n, s in zip(patch_size, stride, strict=True)]
        task |= dict(zip(OF_PRETRAINABLE, (padded, weights_folder), strict=True))
    try:
        network = entry.constructor(**task, **arguments)
    except _REFUSALS as e:
        raise _refused(params, e) from e
    return entry.segmenter(network, stride)


def stride_product(params: NetworkParams, *, spatial_dims: int) -> tuple[int, ...]:
    """Voxels of the input per voxel of the coarsest scale, for each axis."""
    arguments = _arguments(params, spatial_dims)
    try:
        strides = _entry(params).strides(arguments)
        per_axis = [[s] * spatial_dims if isinstance(s, int) else [int(n) for n in s] for s in strides]
        return tuple(math.prod(axis) for axis in zip(*per_axis, strict=True))
    except _REFUSALS as e:
        raise _refused(params, e) from e


def check_patch(params: NetworkParams, *, spatial_dims: int, patch_size: Sequence[int]) -> None:
    """Refuse a patch of which, padded to the stride product, under two voxels an axis reach the bottom."""
    stride = stride_product(params, spatial_dims=spatial_dims)
    if len(patch_size) != len(stride):
        raise ConfigError(
            f"needs {len(stride)} numbers, one for each spatial dimension",
            key="task.patch_size",
            value=list(patch_size),
            remedy="Give one number per axis, or change task.spatial_dims.",
        )
    entry = _entry(params)
    if any(math.ceil(n / s) < entry.least_cells for n, s in zip(patch_size, stride, strict=True)):
        smallest = [entry.least_cells * s for s in stride]
        raise ConfigError(
            f"{params.name} halves the patch down to fewer than {entry.least_cells} voxels along an axis",
            key="task.patch_size",
            value=list(patch_size),
            remedy=f"Use at least {smallest}, best in multiples of {list(stride)}, or a shallower network.",
        )
    if entry.segmenter is FeatureMaps and any(n % s for n, s in zip(patch_size, stride, strict=True)):
        raise ConfigError(
            f"{params.name} needs multiples of {stride[0]}: its features must cover the patch exactly",
            key="task.patch_size",
            value=list(patch_size),
            remedy=f"Try {[round(n / s) * s for n, s in zip(patch_size, stride, strict=True)]}.",
        )


def network_signature(module: nn.Module, is_shared: Callable[[str], bool]) -> str:
    """sha256 (hex) over the sorted names, dtypes and shapes of the exchanged tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if is_shared(name):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    return digest.hexdigest()


def initialise(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `factory` makes, its weights drawn from the seed alone: the W_0 that all sites share.

    It neither reads nor disturbs the caller's random state, and draws on the CPU whatever the default device.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        with torch.device("cpu"):
            return factory()
    finally:
        generator.set_state(state)


def norm_parameter_names(module: nn.Module) -> frozenset[str]:
    """State-dict names of the tensors of all normalisation layers, found by the layers' types."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, kinds)
        for name in layer.state_dict()
    )


def private_names(module: nn.Module) -> frozenset[str]:
    """State-dict names of the parts that a network declares private to a site.

    A network declares them by an attribute `private_parts`: names of modules or parameters within itself.
    """
    parts = {
        f"{prefix}.{part}" if prefix else part
        for prefix, layer in module.named_modules()
        for part in getattr(layer, "private_parts", ())
    }
    within = tuple(f"{part}." for part in parts)
    return frozenset(name for name in module.state_dict() if name in parts or name.startswith(within))


# ---------------------------------------------------------------- from settings to arguments

_REFUSALS = (TypeError, ValueError, AssertionError, KeyError, IndexError, RuntimeError)
"""What MONAI's constructors raise at arguments that do not fit."""


def _refused(params: NetworkParams, error: Exception) -> ConfigError:
    return ConfigError(
        f"{params.name} cannot be built with these settings: {error}",
        key="network.options",
        value=params.options or None,
        remedy="Correct network.options (they go to the MONAI constructor as they are), or the width.",
    )


def _entry(params: NetworkParams) -> NetworkEntry:
    if params.name in _NETWORKS:
        return _NETWORKS[params.name]
    if params.name not in names():
        raise ConfigError(
            "no such network", key="network.name", value=params.name, remedy=_nearest(params.name, names())
        )
    return _brought(params.name)


def _brought(name: str) -> NetworkEntry:
    """The network of an installed package: its entry point is an Entry."""
    point = next(iter(entry_points(group=NETWORK_GROUP, name=name)))
    try:
        entry = point.load()
        if not isinstance(entry, NetworkEntry):
            raise TypeError(f"{point.value} is a {type(entry).__name__}, not a gossipseg.nets.registry.Entry")
    except Exception as e:  # whatever a package does at import
        raise ConfigError(
            f"the package that brings this network cannot be loaded: {type(e).__name__}: {e}",
            key="network.name",
            value=name,
            remedy="Correct or update that package.",
        ) from e
    return entry


def _arguments(params: NetworkParams, dims: int) -> Arguments:
    entry = _entry(params)
    if params.width < entry.width_step or params.width % entry.width_step:
        raise ConfigError(
            f"{params.name} needs a width that is a positive multiple of {entry.width_step}",
            key="network.width",
            value=params.width,
            remedy=f"Try {max(1, round(params.width / entry.width_step)) * entry.width_step}.",
        )
    if params.norm not in entry.norms:
        raise ConfigError(
            f"{params.name} does not work with this norm",
            key="network.norm",
            value=params.norm,
            remedy=f"Choose one of: {', '.join(entry.norms)}.",
        )
    if not 0 <= params.dropout < 1:
        raise ConfigError("must be at least 0 and under 1", key="network.dropout", value=params.dropout)
    _check_options(params, entry)
    return entry.arguments(params, dims) | params.options


_NO_OPTIONS = FROM_THE_TASK + OF_PRETRAINABLE


def _check_options(params: NetworkParams, entry: NetworkEntry) -> None:
    known = [n for n in inspect.signature(entry.constructor).parameters if n not in _NO_OPTIONS]
    if not entry.takes_options:
        known = []
    for option in params.options:
        if option in _NO_OPTIONS and option not in known:
            problem, remedy = (
                "this comes from the task",
                "Remove it; see task.spatial_dims, channels and labels.",
            )
        elif option not in known:
            problem = f"{params.name} has no such option"
            remedy = _nearest(option, known) if known else f"{params.name} takes no options; remove it."
        else:
            continue
        raise ConfigError(
            problem, key=f"network.options.{option}", value=params.options[option], remedy=remedy
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean `{close[0]}`?" if close else f"Choose one of: {', '.join(known)}."


def _norm(params: NetworkParams) -> tuple[str, Mapping[str, Any]]:
    """MONAI's norm argument, affine throughout. The number of groups divides every width, and 8."""
    if params.norm == "group":
        return "group", {"num_groups": math.gcd(params.width, 8), "affine": True}
    return params.norm, {"affine": True}


def _widths(params: NetworkParams, levels: int, largest: int) -> list[int]:
    return [min(params.width * 2**level, largest) for level in range(levels)]


def _sanet(params: NetworkParams, dims: int) -> Arguments:
    return {"width": params.width, "dropout": params.dropout, "norm": _norm(params)}


def _unet(params: NetworkParams, dims: int) -> Arguments:
    widths = _widths(params, 5, params.width * 16)
    shape: Arguments = {"channels": widths, "strides": [2] * 4, "num_res_units": 2}
    return shape | {"norm": _norm(params), "dropout": params.dropout}


def _dynunet(params: NetworkParams, dims: int) -> Arguments:
    shape: Arguments = {"kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4}
    shape |= {"filters": _widths(params, 5, params.width * 16), "deep_supervision": True, "deep_supr_num": 3}
    return shape | {"norm_name": _norm(params), "dropout": params.dropout}


def _segresnet(params: NetworkParams, dims: int) -> Arguments:
    return {"init_filters": params.width, "norm": _norm(params), "dropout_prob": params.dropout}


def _swinunetr(params: NetworkParams, dims: int) -> Arguments:
    return {"feature_size": params.width, "norm_name": _norm(params), "drop_rate": params.dropout}


def _cowpro_encoder(params: NetworkParams, dims: int) -> Arguments:
    return {"width": params.width, "norm": params.norm}


def _cowpro_strides(arguments: Arguments) -> Sequence[int]:
    return [STRIDE]


def _adapted_unetr(params: NetworkParams, dims: int) -> Arguments:
    shape: Arguments = {"feature_size": params.width, "hidden_size": UNETR_HIDDEN * params.width}
    return shape | {"norm_name": _norm(params), "dropout_rate": params.dropout}


def _adapted_sam(params: NetworkParams, dims: int) -> Arguments:
    hidden = UNETR_HIDDEN * params.width
    shape: Arguments = {"feature_size": params.width, "hidden_size": hidden}
    return shape | {"norm_name": _norm(params), "dropout_rate": params.dropout}


_NETWORKS: dict[str, NetworkEntry] = {
    "sanet": NetworkEntry(SANet, _sanet, lambda a: [2] * 4, SelfDescribing, takes_options=False),
    # norms: UNet normalises its class channels as well, and few classes cannot be divided into groups
    "unet": NetworkEntry(
        UNet, _unet, lambda a: a["strides"][: len(a["channels"]) - 1], norms=("instance", "batch")
    ),
    "dynunet": NetworkEntry(DynUNet, _dynunet, lambda a: a["strides"], DynUNetSegmenter),
    "segresnet": NetworkEntry(
        SegResNet, _segresnet, lambda a: [2] * (len(a.get("blocks_down", [1] * 4)) - 1)
    ),
    "swinunetr": NetworkEntry(
        SwinUNETR, _swinunetr, lambda a: [a.get("patch_size", 2)] + [2] * 4, width_step=12
    ),
    "dca_unet": NetworkEntry(DcaUNet, _sanet, lambda a: [2] * 4, SelfDescribing, takes_options=False),
    "adapted_unetr": NetworkEntry(adapted_unetr, _adapted_unetr, lambda a: [16], pretrainable=True),
    "adapted_swinunetr": NetworkEntry(
        adapted_swinunetr, _swinunetr, lambda a: [2] * 5, width_step=12, pretrainable=True
    ),
    "adapted_sam": NetworkEntry(adapted_sam, _adapted_sam, lambda a: [sam_encoder.STRIDE], pretrainable=True),
    # 4 cells: the windows of its prototypes in training
    "cowpro_encoder": NetworkEntry(
        cowpro_encoder,
        _cowpro_encoder,
        _cowpro_strides,
        FeatureMaps,
        norms=("group", "batch"),
        pretrainable=True,
        least_cells=4,
    ),
}
