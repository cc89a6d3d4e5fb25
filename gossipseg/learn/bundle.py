"""The MONAI bundle of a model: its configuration files, and the two parts that they name.

The bundle reads PNG or JPEG in 2-D and NIfTI in 3-D. It needs gossipseg installed (for the network), but not
pytorch-ignite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import monai
import numpy
import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

import gossipseg
from gossipseg.errors import LocalError
from gossipseg.learn.engine.build import output_channels
from gossipseg.learn.evaluation.evaluate import WINDOWS_AT_ONCE, foreground_names
from gossipseg.learn.evaluation.mixture import Mixture, mixed
from gossipseg.learn.params import TaskParams
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.registry import build

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
Config = dict[str, Any]


# ---------------------------------------------------------------- named by the configuration files


def network_def(
    network: Mapping[str, Any] | None = None,
    beside: int = 0,
    output: str = "",
    weights: Sequence[float] = (),
    networks: Sequence[Mapping[str, Any]] = (),
    **task: Any,
) -> nn.Module:
    """The registry's network with plain logits (B, K, *spatial) as output, which is what MONAI expects.

    State-dict names are those of a checkpoint. `task`: spatial_dims, in_channels, out_channels, patch_size.
    `weights`: those of the networks that predict together, if they are several; `output` is softmax or
    sigmoid then. `networks`: one for each of them, in place of `network`, where they differ. `beside`: as
    bundles of earlier versions have it, the number of further networks, of which the first network has half
    of the weight.
    """
    shares = list(weights) or ([0.5, *[0.5 / beside] * beside] if beside else [1.0])
    described = networks or [network or {}] * len(shares)
    nets = [build(NetworkParams(**each), **task) for each in described]
    net: nn.Module = Mixture(nets, shares, output) if len(nets) > 1 else nets[0]
    if beside:
        net.register_load_state_dict_pre_hook(_earlier_names)  # type: ignore[no-untyped-call]
    net.register_forward_hook(_logits_only)
    return net


def _earlier_names(module: nn.Module, state: dict[str, Any], *rest: Any) -> None:
    """`own.` and `others.0.` of an earlier version's bundle are `members.0.` and `members.1.` here."""
    for name in list(state):
        first, _, inner = name.partition(".")
        if first == "own":
            state[f"members.0.{inner}"] = state.pop(name)
        elif first == "others":
            number, _, inner = inner.partition(".")
            state[f"members.{int(number) + 1}.{inner}"] = state.pop(name)


def _logits_only(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


class MemberwiseInferer(SlidingWindowInferer):  # type: ignore[misc]
    """The windows of each model are put together before the models are mixed, as `gossipctl predict` does it
    and validation scored it. With one network it is MONAI's own."""

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        whole = super().__call__
        if not isinstance(network, Mixture):
            return whole(inputs, network, *args, **kwargs)
        each = (_of_member(whole, inputs, member, args, kwargs) for member in network.members)
        return mixed(each, network.weights, network.output, channel=1)


def _of_member(
    whole: Callable[..., Any], inputs: Tensor, member: nn.Module, args: Any, kwargs: Any
) -> Tensor:
    logits: Tensor = whole(inputs, lambda window: member(window).logits, *args, **kwargs)
    return logits.float()


class Predictor:
    """Predicts every image of a dataset: the bundle's `evaluator`, so that it runs without ignite."""

    def __init__(
        self,
        dataset: Iterable[dict[str, Any]],
        network: nn.Module,
        inferer: Callable[[Tensor, nn.Module], Tensor],
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        checkpoint: str,
        device: torch.device,
    ) -> None:
        self.dataset, self.network, self.inferer = dataset, network, inferer
        self.postprocessing, self.checkpoint, self.device = postprocessing, checkpoint, device

    def run(self) -> list[dict[str, Any]]:
        """Load the weights, predict, save; returns the processed items (`image`, `pred`).

        Raises LocalError at an image whose logits are not finite.
        """
        weights = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.network.load_state_dict(weights)
        self.network.eval()
        out = []
        for item in self.dataset:
            image = item["image"]
            with torch.inference_mode():
                logits = self.inferer(image.as_tensor()[None].to(self.device), self.network)[0]
            if not bool(torch.isfinite(logits).all()):  # their label would be background
                name = getattr(image, "meta", {}).get("filename_or_obj", "an image")
                raise LocalError(f"{name}: no mask is written, because what is predicted is not finite.")
            item["pred"] = convert_to_dst_type(logits.clone(), dst=image)[0]
            out.append(self.postprocessing(item))
        return out


# ---------------------------------------------------------------- the files


def unreadable(task: TaskParams) -> str:
    """Why a bundle cannot read the images of a task as the site does, or "". (In 2-D it reads pictures.)"""
    if task.slice_axis is not None:
        return "it cannot slice volumes along task.slice_axis"
    if task.spatial_dims == 2 and task.spacing_mm:
        return "pictures have no voxel size, and task.spacing_mm needs one"
    return ""


def inference_config(
    settings: WorkerSettings, networks: Sequence[NetworkParams], weights: Sequence[float] = ()
) -> Config:
    """configs/inference.json. `weights`: those of the networks that predict together, if they are several."""
    task, training = settings.task, settings.training
    pattern = "/*.nii*" if task.spatial_dims == 3 else "/*.[pj][np]*"
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/predictions'",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": f"$[{{'image': p}} for p in sorted(glob.glob(@dataset_dir + '{pattern}'))]",
        "network_def": {
            "_target_": "gossipseg.learn.bundle.network_def",
            **_described(networks),
            **({"weights": list(weights), "output": training.output} if weights else {}),
            "spatial_dims": task.spatial_dims,
            "in_channels": task.channels,
            "out_channels": output_channels(task, training),
            "patch_size": list(task.patch_size),
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(settings)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": {
            "_target_": "gossipseg.learn.bundle.MemberwiseInferer" if weights else "SlidingWindowInferer",
            "roi_size": list(task.patch_size),
            "sw_batch_size": WINDOWS_AT_ONCE,
            "overlap": training.window_overlap,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing(settings)},
        "evaluator": {
            "_target_": "gossipseg.learn.bundle.Predictor",
            "dataset": "@dataset",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "checkpoint": "@checkpoint",
            "device": "@device",
        },
        "initialize": ["$os.makedirs(@output_dir, exist_ok=True) if os.path.isdir(@dataset_dir) else None"],
        "run": ["$@evaluator.run()"],
    }


def _described(networks: Sequence[NetworkParams]) -> Config:
    """One network, also where several models have it, or a list."""
    first, *others = [asdict(network) for network in networks]
    if all(other == first for other in others):
        return {"network": first}
    return {"networks": [first, *others]}


def names_of(networks: Sequence[NetworkParams]) -> list[str]:
    """The names of the networks, each once, in order."""
    return list(dict.fromkeys(network.name for network in networks))


def preprocessing(settings: WorkerSettings) -> list[Config]:
    """MONAI's dictionary transforms that do to an image what transforms.prepare_image does."""
    task = settings.task
    flat = task.spatial_dims == 2
    reader: Config = {"_target_": "PILReader", "reverse_indexing": False}
    if not flat:
        reader = {"_target_": "NibabelReader"}
    steps = [_on_image("LoadImaged", reader=reader), _on_image("EnsureChannelFirstd")]
    if task.convert_grey_to_rgb and task.channels == 3:
        grey = "$lambda x: x.repeat(3, *[1] * (x.dim() - 1)) if x.shape[0] == 1 else x"
        steps.append(_on_image("Lambdad", func=grey))
    if task.orientation and not flat:
        sides = [["L", "R"], ["P", "A"], ["I", "S"]]
        steps.append(_on_image("Orientationd", axcodes=task.orientation, labels=sides))
    if task.spacing_mm:
        steps.append(
            _on_image("Spacingd", pixdim=list(task.spacing_mm), mode="bilinear", padding_mode="border")
        )
    if task.intensity == "ct_window":
        low, high = task.ct_window_hu
        return [*steps, _scale(low, high, clip=True)]
    if task.intensity == "rgb":
        steps.append(_scale(0, 255, clip=False))
    return [*steps, _on_image("NormalizeIntensityd", channel_wise=True)]


def postprocessing(settings: WorkerSettings) -> list[Config]:
    """From logits to a saved label map on the image's own grid."""
    task = settings.task
    flat = task.spatial_dims == 2
    steps: list[Config] = []
    if task.spacing_mm or (task.orientation and not flat):
        steps.append(
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
            }
        )
    if settings.training.output == "softmax":
        steps.append({"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
    else:
        best = "$lambda z: torch.where(z.amax(0, keepdim=True) > 0, z.argmax(0, keepdim=True) + 1, 0)"
        steps.append({"_target_": "Lambdad", "keys": "pred", "func": best})
    if flat:
        # MONAI's PNG writer turns rows into columns; our reader kept rows as rows.
        steps.append({"_target_": "Transposed", "keys": "pred", "indices": [0, 2, 1]})
    steps.append(
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_ext": ".png" if flat else ".nii.gz",
            "output_postfix": "seg",
            "output_dtype": "uint8",
            "resample": False,
            "separate_folder": False,
            "print_log": False,
        }
    )
    return steps


def _on_image(target: str, **arguments: Any) -> Config:
    return {"_target_": target, "keys": "image", **arguments}


def _scale(low: float, high: float, *, clip: bool) -> Config:
    return _on_image("ScaleIntensityRanged", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=clip)


def metadata(settings: WorkerSettings, networks: Sequence[NetworkParams], round: int) -> Config:
    """configs/metadata.json (MONAI's meta schema 20240725)."""
    task = settings.task
    classes = {str(v): n for v, n in sorted(task.labels.items())}
    spec = settings.spec
    what = task.modality or "image"
    if settings.training.output == "sigmoid":
        classes = {str(i): n for i, n in enumerate(foreground_names(task).values())}
    return {
        "schema": SCHEMA,
        "version": f"0.0.{round}",
        "changelog": {f"0.0.{round}": f"model of site {spec.site} after round {round}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {"gossipseg": gossipseg.__version__},
        "name": f"{spec.federation}-{spec.site}",
        "task": f"Segmentation of {', '.join(foreground_names(task).values())} in {what}",
        "description": f"{' and '.join(names_of(networks))} trained at {spec.site} in the federation "
        f"{spec.federation} "
        f"with {settings.algorithm.name}: the averaged (EMA) model after round {round}.",
        "authors": f"site {spec.site}",
        "copyright": "",
        "intended_use": "Research. Not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": task.modality or "image",
                    "modality": task.modality,
                    "num_channels": task.channels,
                    "spatial_shape": list(task.patch_size),
                    "dtype": "float32",
                    "value_range": [0, 1] if task.intensity == "ct_window" else [],
                    "is_patch_data": True,
                    "channel_def": {str(i): n for i, n in enumerate(_channels(task.channels))},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "logits",
                    "num_channels": output_channels(task, settings.training),
                    "spatial_shape": list(task.patch_size),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": classes,
                }
            },
        },
    }


def _channels(count: int) -> Sequence[str]:
    return ("red", "green", "blue") if count == 3 else [f"channel {i}" for i in range(count)]


_BY_WINDOW = """
It mixes its models in each window that it is given. The inferer of `configs/inference.json` puts each model's
windows together first and mixes whole images, as `gossipctl predict` does. Where windows overlap they differ:
in .2 % of the voxels, and by .003 of Dice at most, where that was measured.
"""
"""What to know of the network alone, where it mixes several models."""


def readme(settings: WorkerSettings, networks: Sequence[NetworkParams], round: int, reason: str = "") -> str:
    """docs/README.md. `reason`: which models predict, and why these."""
    labels = "\n".join(f"- {value}: {text}" for value, text in sorted(settings.task.labels.items()))
    kind = "NIfTI volumes" if settings.task.spatial_dims == 3 else "PNG or JPEG pictures"
    used = " and ".join(f"`{name}`" for name in names_of(networks))
    chosen = f"\nValidation Dice there: {reason}." if reason else ""
    return f"""# {settings.spec.federation}-{settings.spec.site}

The model of site `{settings.spec.site}` in the federation `{settings.spec.federation}` after round {round}:
the average (EMA) over its rounds that the site itself predicts with.
Network: {used}.{chosen}

Labels of the output:

{labels}

With `gossipseg` installed, put {kind} into `data/` and run, in Python, from this folder

    from monai.bundle import run
    run(config_file="configs/inference.json", workflow_type="inference")

The label maps appear in `predictions/`. Or load the network alone:

    from monai.bundle import load  # nothing is downloaded: the weights are here
    net = load(name="bundle", bundle_dir="..", workflow_type="inference", source="github")
{_BY_WINDOW if len(networks) > 1 else ""}
Research software. Not a medical device.
"""
