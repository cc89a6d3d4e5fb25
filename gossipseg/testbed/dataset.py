"""The task, as a site's folder of images shows it: channels, labels, dimensions, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn.data.cases import SPLITS, Case
from gossipseg.learn.data.datalist import LISTS, read_listing
from gossipseg.learn.data.formats.kinds import Kind, kind_of
from gossipseg.learn.data.formats.volume import Volume
from gossipseg.learn.data.lists.listing import Listing
from gossipseg.learn.data.lists.nnunet import channels_of
from gossipseg.learn.data.lists.paths import missing
from gossipseg.learn.data.readers import read_volume
from gossipseg.learn.params import DataParams, TaskParams
from gossipseg.testbed import classes
from gossipseg.testbed.classes import Classes

LOOKED_INTO = 3
"""Cases examined for channels and sizes; the worker checks every one."""
FOLDERS = ("images", "imagesTr")


@dataclass(frozen=True, slots=True)
class FolderData:
    """One site's data, as its list and its cases describe them."""

    site: str
    file: Path
    """The list; without one, the folder."""
    channels: int
    classes: Classes
    spatial_dims: int
    modality: str
    task: str
    """The part of the list's name before the slash (`task/site`); "" where there is none."""
    sizes: tuple[tuple[int, ...], ...]
    """Voxels per axis of the examined cases."""
    orientation: str | None = None
    """Orientation of the examined volumes, such as RAS; None where they differ, or where a file does not
    say."""
    rests_on: Mapping[str, Path] = field(default_factory=dict)
    """A guessed property → the file that it is guessed from."""

    @property
    def labels(self) -> Mapping[int, str]:
        return self.classes.labels

    @property
    def label_map(self) -> Mapping[int, int]:
        return self.classes.label_map


def site_folders(root: Path) -> list[Path]:
    """The sites under a data folder, by name: subfolders with a list, or with folders of images."""
    if not root.is_dir():
        raise DataError("no such folder", file=root, remedy="Give --data a folder with one folder per site.")
    try:
        found = [p for p in sorted(root.iterdir()) if _is_site(p)]
    except OSError as e:
        problem, remedy = f"cannot be read: {e.strerror or e}", "Let this user read the folder."
        raise DataError(problem, file=e.filename or root, remedy=remedy) from None
    if not found:
        remedy = "Each site is a subfolder with dataset.json, or with images/ and masks/ or labels/."
        if _is_site(root):
            remedy = f"It is a site itself: give --data the folder that it lies in, {root.absolute().parent}."
        raise DataError("holds no site", file=root, remedy=remedy)
    return found


def _is_site(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LISTS) or any((folder / n).is_dir() for n in FOLDERS)


def choose_sites(root: Path, chosen: str | None) -> list[Path]:
    """Data folders of the chosen sites: all, the first N, or those named (comma separated).

    Raises ConfigError for an empty choice or a missing site, DataError for a bad `root`.
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


# ---------------------------------------------------------------- one site


def describe(folder: Path) -> FolderData:
    """Read one site's list and examine its cases. Raises DataError naming file and key, LocalError."""
    listing = read_listing(DataParams(str(folder)), folder.name, needs_labels=False)
    cases = _labelled(listing)
    volumes = [_volume(case.image) for case in cases[:LOOKED_INTO]]
    first, file = volumes[0], cases[0].files[0]
    channels, dims = _channels(volumes), len(first.shape)
    _check_said(listing, channels, file)
    found = classes.look(listing, cases, volumes, dims)
    return FolderData(
        site=folder.name,
        file=listing.source,
        channels=channels,
        classes=found,
        spatial_dims=dims,
        modality=_modality(listing.about),
        task=str(listing.about.get("name", "")).rpartition("/")[0],
        sizes=tuple(volume.shape for volume in volumes),
        orientation=_common({_orientation(volume) for volume in volumes}),
        rests_on={"channels": file, "spatial_dims": file, "labels": found.file},
    )


def own_settings(folder: Path) -> tuple[dict[str, Any], bool]:
    """Keys of `data` in its site.yaml that the site's list asks for, and whether test cases have labels.

    Faults of the data are reported by their readers.
    """
    if missing(folder) is not None or not folder.is_dir():
        return {}, True
    listing = read_listing(DataParams(str(folder)), folder.name, lambda problem: None, needs_labels=False)
    try:
        ignored = classes.declared(listing.about, listing.source).ignore
    except DataError:
        ignored = None
    tests = any(case.label for case in listing.told.test) or "test" in listing.into
    return ({} if ignored is None else {"ignore_label": ignored}), tests or not listing.cases


def _labelled(listing: Listing) -> list[Case]:
    """Training cases first; an examined case must have a label. Raises DataError."""
    cases = [*listing.told.training, *listing.undivided]
    cases += [case for split in SPLITS[1:] for case in listing.told.of(split) if case.label]
    if not listing.told.training and not listing.undivided:
        remedy = 'List them as {"image": …, "label": …}.'
        if listing.source.is_dir():
            remedy = "Put images and their labels there, or leave the site out with --sites."
        raise DataError("there are no training cases", file=listing.source, key="training", remedy=remedy)
    for case in cases[:LOOKED_INTO]:
        if case.label is None:
            problem = f"a case needs an image and a label, and {case.id} has no label"
            remedy = "Add its label, or give the task with --peers FILE."
            raise DataError(problem, file=listing.source, key="training", remedy=remedy)
        for path in (*case.files, case.label):
            if absent := missing(path):
                remedy = (
                    f"Put it where this user can read it, or take case {case.id} out of {listing.source}."
                )
                raise DataError(absent, file=path, key="training", remedy=remedy)
    return [case for case in cases if case.label is not None]


def _volume(image: Path | tuple[Path, ...]) -> Volume:
    """An image, read in its own number of dimensions. Raises DataError."""
    first = image if isinstance(image, Path) else image[0]
    flat = kind_of(first) in (Kind.PICTURE, Kind.TIFF)
    problem: DataError | None = None
    for dims in (2, 3) if flat else (3, 2):
        try:
            volume = read_volume(image, dims)
        except DataError as e:
            problem = problem or e
            continue
        if dims == 3 and not flat and volume.shape[-1] == 1:  # a slice, in a file for volumes
            return read_volume(image, 2)
        return volume
    assert problem is not None
    raise problem


def _channels(volumes: Sequence[Volume]) -> int:
    """The number of channels; a grey picture saved in three equal channels counts as grey."""
    grey = all(v.array.shape[0] == 3 and (v.array == v.array[:1]).all() for v in volumes)
    return 1 if grey else int(volumes[0].array.shape[0])


def _check_said(listing: Listing, channels: int, image: Path) -> None:
    key, said = "channels", listing.about.get("channels")
    if said is None and "channel_names" in listing.about:
        key, said = "channel_names", channels_of(listing.about)
    if said is not None and said != channels:
        raise DataError(
            f"the list says {said} channel(s), and {image} has {channels}",
            file=listing.source,
            key=key,
            value=said,
            remedy="Correct the list, or convert the images.",
        )


def _orientation(volume: Volume) -> str | None:
    """The direction of a volume's axes, such as RAS; None where its file does not say."""
    if volume.affine is None or not volume.placed or len(volume.shape) != 3:
        return None
    codes = nibabel.aff2axcodes(volume.affine)
    return None if None in codes else "".join(codes)


def _common(orientations: set[str | None]) -> str | None:
    return orientations.pop() if len(orientations) == 1 else None


def _modality(about: Mapping[str, Any]) -> str:
    given = about.get("modality", about.get("channel_names", ""))
    return "/".join(str(v) for v in given.values()) if isinstance(given, Mapping) else str(given)


# ---------------------------------------------------------------- all sites


def task_of(name: str, sites: list[FolderData]) -> TaskParams:
    """The one task that all these sites share.

    If their volumes have one orientation, the task has it, too. That changes no volume, and names the axes
    (training.flip_axes). Raises DataError naming the site, the file and the differing key.
    """
    alike = classes.common([site.classes for site in sites])
    sites = [replace(site, classes=found) for site, found in zip(sites, alike, strict=True)]
    first = sites[0]
    for other in sites[1:]:
        for key, theirs in _differing(first, other):
            has = f"{getattr(first, key)!r} ({first.rests_on.get(key, first.file)})"
            raise DataError(
                f"site {other.site} differs from site {first.site}, which has {has}",
                file=other.rests_on.get(key, other.file),
                key=key,
                value=theirs,
                remedy=_remedy(key, sites),
            )
    modalities = sorted({s.modality for s in sites if s.modality})
    return TaskParams(
        name=name,
        channels=first.channels,
        labels=dict(first.labels),
        spatial_dims=3 if first.spatial_dims == 3 else 2,
        modality=" + ".join(modalities),
        orientation=_common({s.orientation for s in sites}),
        intensity=_intensity(first, modalities),
        label_map=_one_map(sites),
    )


def _one_map(sites: list[FolderData]) -> dict[int, int]:
    """The label maps of all sites in one. Raises DataError where a value means two classes."""
    meant: dict[int, tuple[int, FolderData]] = {}
    for site in sites:
        for value in sorted({*site.classes.values, *site.label_map}):
            target = site.label_map.get(value, value)
            if target not in site.labels:  # what its list names, and its files have another value for
                continue
            other, first = meant.setdefault(value, (target, site))
            if other != target:
                raise DataError(
                    f"means {site.labels[target]} at site {site.site}, and {first.labels[other]} at site "
                    f"{first.site} ({first.rests_on.get('labels', first.file)})",
                    file=site.rests_on.get("labels", site.file),
                    key="labels",
                    value=value,
                    remedy="Give both the same values, or leave one out with --sites. Daemons may differ "
                    "here: data.label_map in site.yaml is of one site.",
                )
    return {k: v for s in sites for k, v in s.label_map.items()}


def _differing(first: FolderData, other: FolderData) -> Iterator[tuple[str, Any]]:
    for key in ("channels", "labels", "spatial_dims"):
        if getattr(first, key) != getattr(other, key):
            yield key, getattr(other, key)


def _intensity(site: FolderData, modalities: list[str]) -> Any:
    if site.channels == 3 and site.spatial_dims == 2:
        return "rgb"
    hounsfield = modalities == ["CT"] and site.spatial_dims == 3
    return "ct_window" if hounsfield else "zscore"


def _remedy(key: str, sites: list[FolderData]) -> str:
    if key == "channels" and {s.channels for s in sites} == {1, 3}:
        grey = ",".join(s.site for s in sites if s.channels == 1)
        return (
            f"Leave it out with --sites {grey}, or give --peers FILE whose task has channels: 3 and "
            "convert_grey_to_rgb: true."
        )
    alike = ",".join(s.site for s in sites if getattr(s, key) == getattr(sites[0], key))
    return f"Leave it out with --sites {alike}, or give the common task with --peers FILE."
