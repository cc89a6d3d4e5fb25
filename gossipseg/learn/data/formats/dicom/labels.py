"""DICOM-SEG and RTSTRUCT: structures that somebody drew, onto the grid of the image they are drawn on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.base import items, read_dataset, reading, text
from gossipseg.learn.data.formats.dicom.contours import contour_segments
from gossipseg.learn.data.formats.dicom.files import is_dicom, list_folder
from gossipseg.learn.data.formats.dicom.image import FRAME
from gossipseg.learn.data.formats.dicom.seg import seg_segments
from gossipseg.learn.data.formats.volume import Segmentation, Volume

__all__ = ["is_segmentation", "read_segmentation"]

_CLASS = "1.2.840.10008.5.1.4.1.1."
_KINDS = {
    f"{_CLASS}66.4": "SEG",
    f"{_CLASS}66.7": "SEG",
    f"{_CLASS}66.5": "surface SEG",
    f"{_CLASS}481.3": "RTSTRUCT",
}


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM-SEG or RTSTRUCT, or a folder's DICOM files are nothing else.

    Never raises for a file that is none of these.
    """
    if not path.is_dir():
        return is_dicom(path) and bool(_kind(path))
    try:
        files = list_folder(path).dicom
    except DataError:
        return False  # an image's reader says what is wrong there
    return bool(files) and all(_kind(file) for file in files)


def read_segmentation(path: Path, image: Volume) -> Segmentation:
    """The structures of a DICOM-SEG or RTSTRUCT as masks on the image's grid; they may overlap.

    Raises DataError where they do not lie on this grid, LocalError where pydicom is not installed.
    """
    with reading(path):
        file = _one_file(path)
        dataset = read_dataset(file)
        kind = _kind_of(dataset, file)
        if kind == "SEG":
            segments, notes = seg_segments(dataset, file, image)
        elif kind == "RTSTRUCT":
            segments, notes = contour_segments(dataset, file, image)
        else:
            raise DataError(
                f"is a {kind or 'DICOM file of another kind'}, not a DICOM-SEG or RTSTRUCT",
                file=file,
                remedy="Convert it to a DICOM-SEG or NIfTI.",
            )
    notes += _of_another_frame(dataset, file, image)
    arbitrary = kind == "RTSTRUCT"  # there numbers tell the order of drawing
    return Segmentation(segments, image.shape, image.affine, notes, numbers_are_arbitrary=arbitrary)


def _of_another_frame(dataset: Any, file: Path, image: Volume) -> tuple[str, ...]:
    """What to say of a label whose positions are not of the image's patient, or not of the same scan.

    It is no fault by itself: tools that take names out of files, or convert them, may make a frame anew.
    """
    parts = [dataset, *items(dataset, "ReferencedFrameOfReferenceSequence", file)]
    frames = {found for part in parts if (found := text(part, FRAME, file))}
    rois = items(dataset, "StructureSetROISequence", file)
    frames |= {found for roi in rois if (found := text(roi, "ReferencedFrameOfReferenceUID", file))}
    if not frames or not image.frame or image.frame in frames:
        return ()
    some = ", ".join(sorted(frames)[:2])
    return (f"its frame of reference ({some}) is not its image's ({image.frame}): is it of this scan?",)


def _one_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = list_folder(path).dicom
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(f.relative_to(path)) for f in files[:4])
    raise DataError(
        f"this folder holds {len(files)} DICOM files ({names}), a label is one DICOM-SEG or RTSTRUCT",
        file=path,
        remedy="Name the file.",
    )


def _kind(file: Path) -> str:
    try:
        return _kind_of(read_dataset(file, ("SOPClassUID", "Modality")), file)
    except DataError:
        return ""


def _kind_of(head: Any, file: Path) -> str:
    modality = text(head, "Modality", file)
    fallback = modality if modality in ("SEG", "RTSTRUCT") else ""
    return _KINDS.get(text(head, "SOPClassUID", file), fallback)
