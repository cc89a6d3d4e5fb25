"""Predictions as a DICOM-SEG that refers to its source series, frame by frame."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg import __version__
from gossipseg.errors import DataError, GossipsegError, LocalError
from gossipseg.learn.data.formats.dicom.base import PIP, quiet, read_dataset, tag_name
from gossipseg.learn.data.formats.dicom.files import is_dicom
from gossipseg.learn.data.formats.dicom.planes import Plane
from gossipseg.learn.data.formats.dicom.series import read_series
from gossipseg.learn.data.formats.dicom.stack import plane_affine, stack
from gossipseg.learn.data.formats.volume import Volume
from gossipseg.store import atomic_write

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""What a segmentation copies from its source; the standard lets it be empty, not absent."""
_MUST_BE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_LONGEST = 64
"""Characters of a DICOM label."""
_SAME_GRID_MM = 1e-3


def write_dicom_seg(
    out: Path, labels: np.ndarray, names: Mapping[int, str], source: Path, volume: Volume
) -> None:
    """Write labels as a BINARY segmentation of the DICOM file or series `source`.

    `labels`: class of each voxel, on the axes of `volume`, which was read from `source`. `names`: class →
    name; class 0 is the background and no segment. Segments are numbered from 1 in the order of the
    classes, as the standard wants it, also those that are drawn nowhere.
    Raises DataError where the source cannot be referred to, LocalError without highdicom.
    """
    hd = _highdicom()
    if not source.is_dir() and not is_dicom(source):
        raise DataError(
            "a DICOM-SEG refers to DICOM images, this is none", file=source, remedy="Choose another --format."
        )
    planes = _planes(source, labels, volume)
    heads, frames = _sources(planes, labels)
    numbers = {value: n for n, value in enumerate(sorted(v for v in names if v != 0), start=1)}
    pixels = _renumbered(frames, numbers, out)
    try:
        with quiet(), _unlogged():
            data = _encode(hd, heads, pixels, {n: names[v] for v, n in numbers.items()})
    except (GossipsegError, MemoryError):
        raise
    except Exception as e:
        # highdicom raises ValueError, TypeError, AttributeError and KeyError over what a source lacks.
        raise DataError(
            f"a DICOM-SEG of it cannot be written: {type(e).__name__}: {e}",
            file=source,
            remedy="Choose another --format.",
        ) from e
    atomic_write(out, data)


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError:
        raise LocalError(
            f"DICOM-SEG files need the package highdicom. Install gossipseg[dicom]: {PIP}"
        ) from None
    return highdicom


@contextmanager
def _unlogged() -> Iterator[None]:
    """What highdicom logs (of empty segments, say) is decided here, and no news to the user."""
    logger = logging.getLogger("highdicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _planes(source: Path, labels: np.ndarray, volume: Volume) -> tuple[Plane, ...]:
    """The source's planes in the order of the labels' slices. Raises DataError where they do not fit."""
    planes = read_series(source, len(volume.shape)).planes
    affine: np.ndarray | None
    shape: tuple[int, ...]
    if len(volume.shape) == 2:
        affine, shape = plane_affine(planes[0]), planes[0].size
    else:
        stacked = stack(planes, source)
        planes, affine = stacked.planes, stacked.affine
        shape = (*planes[0].size[::-1], len(planes))
    if tuple(labels.shape) != shape or _moved(affine, volume):
        raise DataError(
            f"the labels ({labels.shape}) do not lie on the grid of this series ({shape}); has it changed?",
            file=source,
        )
    return planes


def _moved(affine: np.ndarray | None, volume: Volume) -> bool:
    if affine is None or volume.affine is None or not volume.placed:
        return False
    return not np.allclose(affine, volume.affine, rtol=0, atol=_SAME_GRID_MM)


def _sources(planes: Sequence[Plane], labels: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Heads of the source's files, and the labels as (frame, row, column) in their order."""
    frames = labels[None] if labels.ndim == 2 else labels.transpose(2, 1, 0)
    files = list(dict.fromkeys(p.file for p in planes))
    if len(files) < len(planes):
        if len(files) > 1:
            raise DataError(
                f"a DICOM-SEG refers to one multi-frame file, these are {len(files)}", file=files[0].parent
            )
        frames = frames[np.argsort([p.frame or 0 for p in planes])]
    heads = [_head(p) for p in planes[: len(files)]]
    if planes[0].position is not None and planes[0].frame is None:
        _set_thickness(heads, planes)
    return heads, frames


def _set_thickness(heads: Sequence[Any], planes: Sequence[Plane]) -> None:
    """The step between slices is that of their positions, whatever the source's elements say."""
    first, last = planes[0].position, planes[-1].position
    assert first is not None and last is not None
    step = float(np.linalg.norm(last - first)) / max(len(planes) - 1, 1)
    for head, plane in zip(heads, planes, strict=True):
        head.SliceThickness = plane.number("SliceThickness") or step or 1.0
        if step:
            head.SpacingBetweenSlices = step


def _head(plane: Plane) -> Any:
    """A file's elements but for its pixels, with what a segmentation needs of them."""
    import pydicom

    try:
        with quiet():
            head = pydicom.dcmread(plane.file, force=True, stop_before_pixels=True)
    except Exception:
        head = read_dataset(plane.file)  # says what is wrong
    for keyword in _MUST_BE:
        if not head.get(keyword):
            raise DataError(
                "is missing: a DICOM-SEG must refer to it", file=plane.file, key=tag_name(keyword),
                remedy="Choose another --format.",
            )  # fmt: skip
    for keyword in _MAY_BE_EMPTY:
        if keyword not in head:
            setattr(head, keyword, None)
    if "Modality" not in head:
        head.Modality = "OT"
    if plane.position is None:
        head.pop("FrameOfReferenceUID", None)
    elif not head.get("FrameOfReferenceUID"):
        # A series that names no frame of reference has its own.
        head.FrameOfReferenceUID = pydicom.uid.generate_uid(entropy_srcs=[str(head.SeriesInstanceUID)])
    return head


def _renumbered(frames: np.ndarray, numbers: Mapping[int, int], out: Path) -> np.ndarray:
    pixels = np.zeros(frames.shape, np.uint8 if len(numbers) < 256 else np.uint16)
    known = frames == 0
    for value, n in numbers.items():
        here = frames == value
        pixels[here] = n
        known |= here
    if not known.all():
        unknown = np.unique(frames[~known]).tolist()
        raise DataError(f"the labels hold values without a name: {unknown}", file=out)
    return pixels


def _encode(hd: Any, heads: list[Any], pixels: np.ndarray, names: Mapping[int, str]) -> bytes:
    from pydicom.sr.codedict import codes

    by = hd.AlgorithmIdentificationSequence(
        name="gossipseg", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    described = [
        hd.seg.SegmentDescription(
            segment_number=n,
            segment_label=_label(name),
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=hd.sr.CodedConcept(str(n), "99GOSSIPSEG", _label(name)),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=by,
        )
        for n, name in names.items()
    ]
    made = hd.seg.Segmentation(
        source_images=heads,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="gossipseg",
        manufacturer_model_name="gossipseg",
        software_versions=__version__,
        device_serial_number="none",
        content_description="Segmentation by a trained model",
        specific_character_set="ISO_IR 192",
    )
    sink = io.BytesIO()
    made.save_as(sink)
    return sink.getvalue()


def _label(name: str) -> str:
    return name.replace("\\", "/")[:_LONGEST]
