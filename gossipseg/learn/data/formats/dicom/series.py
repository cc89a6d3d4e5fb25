"""Which of a folder's DICOM files are its image; what else lies there is set aside by name, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import text, whole
from gossipseg.learn.data.formats.dicom.files import is_directory_record, list_folder
from gossipseg.learn.data.formats.dicom.planes import Plane, planes_of, read_head

_CLASS = "1.2.840.10008.5.1.4.1.1."
_NO_IMAGE_CLASSES = (
    # Waveforms, presentations, raw data and SEG, value maps, reports, encapsulated documents.
    *(_CLASS + part for part in ("9.", "11.", "66", "67", "88.", "104.")),
    *(f"{_CLASS}481.{n}" for n in range(2, 30)),  # radiotherapy but for its images (481.1)
    *("1.3.12.2.1107.5.9.", "1.3.46.670589."),  # Siemens' and Philips' own
)
_NO_IMAGE_MODALITIES = frozenset(
    ("SEG", "SR", "PR", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "KO", "AU", "ECG", "DOC", "FID")
)


@dataclass(frozen=True, slots=True)
class Series:
    """The planes of one series, unsorted, and what was decided on the way to them."""

    planes: tuple[Plane, ...]
    notes: tuple[str, ...]


def read_series(path: Path, spatial_dims: int) -> Series:
    """The one image series of a file or a folder. Raises DataError where there is none, or several."""
    if not path.is_dir():
        head = _image_head(path)
        return Series(tuple(planes_of(path, head)), ())
    listing = list_folder(path)
    heads = {file: read_head(file) for file in listing.dicom}
    heads = {file: head for file, head in heads.items() if not is_directory_record(head)}
    if not heads:
        raise DataError(
            f"this folder holds no DICOM files ({len(listing.others)} of other kinds)",
            file=path,
            remedy="An image folder is one DICOM series.",
        )
    notes = [_names(path, listing.others, "not DICOM")] if listing.others else []
    images = _without_objects(path, heads, notes)
    for file, head in images.items():
        whole(head, "Rows", file)  # a torn header must not pass for an image of another series
    images = _without_localizers(path, images, notes)
    images = _without_copies(path, images, notes)
    series = _one_series(path, images, spatial_dims, notes)
    return Series(tuple(p for file, head in series.items() for p in planes_of(file, head)), tuple(notes))


def kind_of(head: Any, file: Path) -> str:
    """What a file is if it is no image ("SEG", "SR"), else ""."""
    modality = text(head, "Modality", file)
    sop_class = text(head, "SOPClassUID", file)
    if modality in _NO_IMAGE_MODALITIES:
        return modality
    return (modality or "no image") if sop_class.startswith(_NO_IMAGE_CLASSES) else ""


def _image_head(file: Path) -> Any:
    head = read_head(file)
    if is_directory_record(head):
        raise DataError(
            "is a table of contents (DICOMDIR), not an image",
            file=file,
            remedy="Name the folder of the series.",
        )
    if kind := kind_of(head, file):
        raise DataError(f"is a DICOM object of the kind {kind}, not an image", file=file)
    return head


def _without_objects(root: Path, heads: Mapping[Path, Any], notes: list[str]) -> dict[Path, Any]:
    kinds = {file: kind_of(head, file) for file, head in heads.items()}
    aside = [file for file, kind in kinds.items() if kind]
    if len(aside) == len(heads):
        raise DataError(
            f"this folder holds no DICOM image, only {', '.join(sorted(set(kinds.values())))}", file=root
        )
    if aside:
        counted = Counter(k for k in kinds.values() if k)
        notes.append(_names(root, aside, ", ".join(f"{n} {k}" for k, n in sorted(counted.items()))))
    return {file: head for file, head in heads.items() if not kinds[file]}


def _without_localizers(root: Path, heads: Mapping[Path, Any], notes: list[str]) -> dict[Path, Any]:
    """Set scout views aside where there is another image; alone they are an image like any."""
    aside = [f for f, head in heads.items() if "LOCALIZER" in text(head, "ImageType", f).upper()]
    if not aside or len(aside) == len(heads):
        return dict(heads)
    notes.append(_names(root, aside, "localizers by ImageType"))
    return {file: head for file, head in heads.items() if file not in set(aside)}


def _without_copies(root: Path, heads: Mapping[Path, Any], notes: list[str]) -> dict[Path, Any]:
    """Set second copies of a file aside, byte for byte the same."""
    first: dict[str, Path] = {}
    aside = []
    for file, head in heads.items():
        uid = text(head, "SOPInstanceUID", file)
        known = first.setdefault(uid, file)
        if not uid or known == file:
            continue
        if known.stat().st_size == file.stat().st_size and known.read_bytes() == file.read_bytes():
            aside.append(file)
    if aside:
        notes.append(_names(root, aside, "copies of files that are there already"))
    return {file: head for file, head in heads.items() if file not in set(aside)}


def _one_series(
    root: Path, heads: Mapping[Path, Any], spatial_dims: int, notes: list[str]
) -> dict[Path, Any]:
    groups: dict[str, dict[Path, Any]] = {}
    for file, head in heads.items():
        groups.setdefault(text(head, "SeriesInstanceUID", file), {})[file] = head
    if spatial_dims == 3 and len(groups) > 1:
        # Screenshots and dose reports: an image without a position is no part of any volume.
        placed = {uid: g for uid, g in groups.items() if any(_may_be_placed(h) for h in g.values())}
        if placed and len(placed) < len(groups):
            aside = [f for uid, g in groups.items() if uid not in placed for f in g]
            notes.append(_names(root, aside, "images without a position, of other series"))
            groups = placed
    if len(groups) > 1:
        raise DataError(
            f"this folder holds {len(groups)} DICOM series: "
            + "; ".join(_describe(root, group) for group in groups.values()),
            file=root,
            remedy="Give each its own folder.",
        )
    return next(iter(groups.values()))


def _may_be_placed(head: Any) -> bool:
    return "ImagePositionPatient" in head or "PerFrameFunctionalGroupsSequence" in head


def _describe(root: Path, group: Mapping[Path, Any]) -> str:
    file, head = next(iter(group.items()))
    frames = sum(whole(h, "NumberOfFrames", f, default=1) for f, h in group.items())
    name = text(head, "SeriesDescription", file) or "no description"
    return f"{text(head, 'Modality', file)} '{name}', {frames} slices ({file.relative_to(root)})"


def _names(root: Path, files: tuple[Path, ...] | list[Path], what: str) -> str:
    shown = ", ".join(str(f.relative_to(root)) for f in files[:3])
    return f"set aside ({what}): {len(files)} files: {shown}{', …' if len(files) > 3 else ''}"
