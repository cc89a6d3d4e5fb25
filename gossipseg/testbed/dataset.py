"""What a site's folder of images says about the task: channels, labels, dimensions, sizes.

What belongs here: reading a data list and the first few of its files, and comparing sites. What must not:
torch, monai, training, the full check of every file (that is `gossipctl check` and the worker's start).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from PIL import Image

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn.params import TaskParams

SPLITS = ("training", "validation", "test")
LABELS_READ = 3
"""Label images looked into for their values; the worker checks every one."""
_NIFTI = (".nii", ".nii.gz")
_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class SiteData:
    """One site's data, as its list and its first cases describe it."""

    site: str
    file: Path
    """dataset.json, or the folder where there is none."""
    channels: int
    labels: dict[int, str]
    spatial_dims: int
    modality: str
    task: str
    """What the list says before the slash of its name (`task/site`); "" where it says nothing."""
    sizes: tuple[tuple[int, ...], ...]
    """Voxels per axis of the cases looked into."""
    label_map: dict[int, int] = field(default_factory=dict)
    orientation: str | None = None
    """Of the volumes looked into, such as RAS; None where they differ, or where a file does not say."""


def site_folders(root: Path) -> list[Path]:
    """The sites under a data folder: subfolders with a dataset.json or an images/ folder, by name."""
    if not root.is_dir():
        raise DataError("no such folder", file=root, remedy="Give --data a folder with one folder per site.")
    found = [p for p in sorted(root.iterdir()) if (p / "dataset.json").is_file() or (p / "images").is_dir()]
    if not found:
        raise DataError(
            "holds no site",
            file=root,
            remedy="Each site is a subfolder with dataset.json, or with images/ and masks/ or labels/.",
        )
    return found


def choose_sites(root: Path, chosen: str | None) -> list[Path]:
    """Data folders of the chosen sites: all, the first N, or those named (comma separated).

    Raises ConfigError for a choice of nothing or of a site that is not there, DataError for a bad `root`.
    """
    if chosen is not None and not chosen.strip(", \t\n"):
        remedy = "Write names with commas between or a number, or leave --sites out to take all."
        raise ConfigError("names no site", key="--sites", value=chosen, remedy=remedy)
    folders = site_folders(root)
    if chosen is None:
        return folders
    if chosen.strip().isdecimal():
        count = int(chosen)
        if not 1 <= count <= len(folders):
            raise ConfigError(
                f"{root} has {len(folders)} sites",
                key="--sites",
                value=count,
                remedy="Ask for at most that many.",
            )
        return folders[:count]
    by_name = {folder.name: folder for folder in folders}
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in names:
        if name not in by_name:
            raise ConfigError(
                f"no such site in {root}",
                key="--sites",
                value=name,
                remedy=f"It has {', '.join(by_name)}.",
            )
    return [by_name[name] for name in dict.fromkeys(names)]


def describe(folder: Path) -> SiteData:
    """Read one site's list and its first cases. Raises DataError naming file and key."""
    file = folder / "dataset.json"
    listed = _read_list(file) if file.is_file() else {}
    cases = _listed_cases(file, listed) if listed else _folder_cases(folder)
    image, label = cases[0]
    sizes, channels = zip(*(_size_and_channels(i) for i, _ in cases[:LABELS_READ]), strict=True)
    dims = len(sizes[0])
    if "channels" in listed and listed["channels"] != channels[0]:
        raise DataError(
            f"the list says {listed['channels']} channel(s), and {image.name} has {channels[0]}",
            file=file,
            key="channels",
            value=listed["channels"],
            remedy="Correct the list, or convert the images.",
        )
    values = sorted({int(v) for _, path in cases[:LABELS_READ] for v in _values(path)})
    labels = _labels(listed, values)
    return SiteData(
        site=folder.name,
        file=file if listed else folder,
        channels=channels[0],
        labels=labels,
        spatial_dims=dims,
        modality=_modality(listed),
        task=str(listed.get("name", "")).rpartition("/")[0],
        sizes=sizes,
        label_map=_label_map(labels, values, file if listed else label),
        orientation=_common({_orientation(i) for i, _ in cases[:LABELS_READ]}),
    )


def task_of(name: str, sites: list[SiteData]) -> TaskParams:
    """The one task that all these sites share.

    Where their volumes have one and the same orientation it is the task's: that changes none of them, and
    tells what their axes are (training.flip_axes).
    Raises DataError naming the site, its file and the key that differs.
    """
    first = sites[0]
    for other in sites[1:]:
        for key in ("channels", "labels", "spatial_dims"):
            mine, theirs = getattr(first, key), getattr(other, key)
            if mine != theirs:
                raise DataError(
                    f"site {other.site} differs from site {first.site}, which has {mine!r}",
                    file=other.file,
                    key=key,
                    value=theirs,
                    remedy=_remedy(key, sites),
                )
    modalities = sorted({s.modality for s in sites if s.modality})
    return TaskParams(
        name=name,
        channels=first.channels,
        labels=first.labels,
        spatial_dims=3 if first.spatial_dims == 3 else 2,
        modality=" + ".join(modalities),
        orientation=_common({s.orientation for s in sites}),
        intensity=_intensity(first, modalities),
        label_map={k: v for s in sites for k, v in s.label_map.items()},
    )


def _intensity(site: SiteData, modalities: list[str]) -> Any:
    if site.channels == 3 and site.spatial_dims == 2:
        return "rgb"
    hounsfield = modalities == ["CT"] and site.spatial_dims == 3
    return "ct_window" if hounsfield else "zscore"


def _remedy(key: str, sites: list[SiteData]) -> str:
    if key == "channels" and {s.channels for s in sites} == {1, 3}:
        grey = ",".join(s.site for s in sites if s.channels == 1)
        return (
            f"Leave it out with --sites {grey}, or give --peers FILE whose task has channels: 3 and "
            "convert_grey_to_rgb: true."
        )
    alike = ",".join(s.site for s in sites if getattr(s, key) == getattr(sites[0], key))
    return f"Leave it out with --sites {alike}, or give the common task with --peers FILE."


# ---------------------------------------------------------------- reading


def _read_list(file: Path) -> dict[str, Any]:
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise DataError(f"cannot be read as JSON: {e}", file=file, remedy="Mend the file.") from None
    if not isinstance(listed, dict):
        raise DataError("is not a JSON object", file=file, remedy="See README, section Data lists.")
    return listed


def _listed_cases(file: Path, listed: dict[str, Any]) -> list[tuple[Path, Path]]:
    cases = listed.get("training")
    if not isinstance(cases, list) or not cases:
        raise DataError(
            "the list has no training cases",
            file=file,
            key="training",
            remedy='List them as {"image": …, "label": …}.',
        )
    found = []
    for index, case in enumerate(cases[:LABELS_READ]):
        try:
            pair = (file.parent / case["image"], file.parent / case["label"])
        except (KeyError, TypeError):
            raise DataError(
                "a case needs an image and a label",
                file=file,
                key=f"training.{index}",
                value=case,
                remedy='Write it as {"image": …, "label": …}.',
            ) from None
        for path in pair:
            if not path.exists():
                raise DataError(
                    "no such file",
                    file=file,
                    key=f"training.{index}",
                    value=str(path.relative_to(file.parent)),
                    remedy="Paths are relative to the list.",
                )
        found.append(pair)
    return found


def _folder_cases(folder: Path) -> list[tuple[Path, Path]]:
    labels = next((folder / n for n in ("masks", "labels") if (folder / n).is_dir()), None)
    if labels is None:
        raise DataError("has images/ and neither masks/ nor labels/", file=folder, remedy="Add the masks.")
    by_stem = {_stem(p): p for p in labels.iterdir()}
    images = sorted(p for p in (folder / "images").iterdir() if _stem(p) in by_stem)
    if not images:
        raise DataError(
            "no image has a mask of the same name", file=folder, remedy="Name image and mask alike."
        )
    return [(p, by_stem[_stem(p)]) for p in images]


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _size_and_channels(path: Path) -> tuple[tuple[int, ...], int]:
    """Voxels per spatial axis, and channels."""
    try:
        if path.name.endswith(_NIFTI):
            shape = tuple(int(n) for n in nibabel.load(path).shape)
            return (shape[:3], shape[3]) if len(shape) == 4 else (shape, 1)
        if path.name.lower().endswith(_PICTURES):
            with Image.open(path) as picture:
                return (picture.height, picture.width), len(picture.getbands())
    except (OSError, ImageFileError) as e:
        raise DataError(f"cannot be read: {e}", file=path, remedy="Replace or repair the file.") from None
    raise DataError(
        "is of a kind from which the testbed cannot tell the task",
        file=path,
        remedy="Give the task with --peers FILE.",
    )


def _orientation(path: Path) -> str | None:
    """Where the axes of a 3-D NIfTI file lead, such as RAS; None where its header does not say."""
    if not path.name.endswith(_NIFTI):
        return None
    volume = nibabel.load(path)
    if len(volume.shape) < 3 or not (volume.header["sform_code"] or volume.header["qform_code"]):
        return None
    codes = nibabel.aff2axcodes(volume.affine)
    return None if None in codes else "".join(codes)


def _common(orientations: set[str | None]) -> str | None:
    return orientations.pop() if len(orientations) == 1 else None


def _values(path: Path) -> list[int]:
    try:
        if path.name.endswith(_NIFTI):
            return [int(v) for v in np.unique(np.asanyarray(nibabel.load(path).dataobj))]
        with Image.open(path) as picture:
            return [int(v) for v in np.unique(np.asarray(picture))]
    except (OSError, ImageFileError) as e:
        raise DataError(f"cannot be read: {e}", file=path, remedy="Replace or repair the file.") from None


def _modality(listed: dict[str, Any]) -> str:
    given = listed.get("modality", "")
    return "/".join(str(v) for v in given.values()) if isinstance(given, dict) else str(given)


def _labels(listed: dict[str, Any], values: list[int]) -> dict[int, str]:
    given = listed.get("labels")
    if isinstance(given, dict):
        return {int(k): str(v) for k, v in given.items()}
    if values in ([0, 255], [255], [0, 1], [1]):
        return {0: "background", 1: "foreground"}
    return {v: "background" if v == 0 else f"label {v}" for v in sorted({0, *values})}


def _label_map(labels: dict[int, str], values: list[int], where: Path) -> dict[int, int]:
    """{255: 1} for two-class masks that are saved as 0/255 (or 0/any one other value)."""
    unknown = [v for v in values if v not in labels]
    if not unknown:
        return {}
    if len(unknown) == 1 and sorted(labels) == [0, 1] and 1 not in values:
        return {unknown[0]: 1}
    raise DataError(
        f"the label images hold the values {values}",
        file=where,
        key="labels",
        value=sorted(labels),
        remedy="Add the missing labels, or give a task with label_map by --peers FILE.",
    )
