"""DICOM files for tests: slices, series, multi-frame images, segmentations and contours, all made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"

AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])
SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1]])
_a, _b = np.deg2rad(20), np.deg2rad(-35)
OBLIQUE = np.array(
    [
        [np.cos(_a), np.sin(_a), 0],
        [-np.sin(_a) * np.cos(_b), np.cos(_a) * np.cos(_b), np.sin(_b)],
    ]
)


def item(**values: Any) -> Dataset:
    """A dataset with these elements."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def new_file(sop_class: str, modality: str, **values: Any) -> FileDataset:
    """A file's dataset with the marks of a patient, a study and a series, and these elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("made", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    made.PatientID, made.PatientName, made.Modality = "P7", "Doe^Jane", modality
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def set_pixels(made: Dataset, pixels: np.ndarray, **values: Any) -> Dataset:
    """Give a dataset pixels: (rows, columns), (rows, columns, 3), or with frames in front."""
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2 and values.get("SamplesPerPixel", 3) == 3
    spatial = pixels.shape[:-1] if colour else pixels.shape
    made.Rows, made.Columns = spatial[-2:]
    if len(spatial) == 3:
        made.NumberOfFrames = spatial[0]
    made.SamplesPerPixel = 3 if colour else 1
    if colour:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    for keyword, value in values.items():
        setattr(made, keyword, value)
    data = np.ascontiguousarray(pixels).tobytes()
    made.PixelData = data + b"\0" * (len(data) % 2)
    made["PixelData"].VR = "OB" if made.BitsAllocated <= 8 else "OW"
    return made


def save(made: Any, path: Path) -> Path:
    """Write the dataset as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def picture(path: Path, pixels: np.ndarray, *, modality: str = "DX", **values: Any) -> Path:
    """One image without a position. Names of pixel elements among `values` override the usual."""
    return save(set_pixels(new_file(DX, modality), pixels, **values), path)


def ct_slice(
    pixels: np.ndarray,
    position: Sequence[float],
    *,
    orientation: np.ndarray = AXIAL,
    spacing: tuple[float, float] = (1.5, 0.5),
    instance: int | None = 1,
    **values: Any,
) -> Any:
    """One slice of a series; `spacing` between rows, between columns."""
    made = new_file(CT, "CT", InstanceNumber=instance)
    made.ImagePositionPatient = [round(float(v), 6) for v in position]
    made.ImageOrientationPatient = [round(float(v), 9) for v in np.ravel(orientation)]
    made.PixelSpacing = list(spacing)
    return set_pixels(made, pixels, **values)


def normal(orientation: np.ndarray) -> np.ndarray:
    """The direction in which slices are stacked."""
    return np.cross(orientation[0], orientation[1])


def write_series(
    folder: Path,
    volume: np.ndarray,
    *,
    orientation: np.ndarray = AXIAL,
    spacing: tuple[float, float] = (1.5, 0.5),
    step: float = 2.5,
    origin: Sequence[float] = (30.0, -20.0, 10.0),
    instances: Sequence[int | None] | None = None,
    name: str = "IM{:03d}.dcm",
    offsets: Mapping[int, Sequence[float]] | None = None,
    leave_out: Sequence[int] = (),
    **values: Any,
) -> np.ndarray:
    """Write a volume (column, row, slice) slice by slice. Returns its affine to RAS mm.

    `offsets` move single slices, in mm along (row direction, column direction, normal).
    """
    frame = np.vstack([orientation, normal(orientation)])
    for k in range(volume.shape[2]):
        moved = np.array((offsets or {}).get(k, (0, 0, 0))) @ frame
        position = np.array(origin) + frame[2] * step * k + moved
        instance = (instances or range(1, 10_000))[k]
        if k not in leave_out:
            made = ct_slice(
                volume[:, :, k].T,
                position,
                orientation=orientation,
                spacing=spacing,
                instance=instance,
                **values,
            )
            save(made, folder / name.format(k))
    return affine_of(orientation, spacing, step, origin)


def affine_of(
    orientation: np.ndarray, spacing: tuple[float, float], step: float, origin: Sequence[float]
) -> np.ndarray:
    """The affine of (column, row, slice) to RAS mm, written out."""
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = orientation[0] * spacing[1], orientation[1] * spacing[0]
    lps[:3, 2], lps[:3, 3] = normal(orientation) * step, origin
    return np.diag([-1.0, -1, 1, 1]) @ lps


def write_enhanced(
    path: Path,
    volume: np.ndarray,
    *,
    order: Sequence[int] | None = None,
    rescale: Sequence[tuple[float, float]] | None = None,
    echoes: Sequence[float] | None = None,
    orientation: np.ndarray = AXIAL,
    origin: Sequence[float] = (30.0, -20.0, 10.0),
    spacing: tuple[float, float] = (1.5, 0.5),
    step: float = 2.5,
    shift: int = 0,
) -> np.ndarray:
    """Write a volume (column, row, slice) as one enhanced MR; frame n shows the slice `order[n]`."""
    order = list(order or range(volume.shape[2]))
    made = new_file(ENHANCED_MR, "MR", InstanceNumber=1)
    set_pixels(made, volume.transpose(2, 1, 0)[[k % volume.shape[2] for k in order]])
    made.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=list(spacing), SliceThickness=9.0)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[float(v) for v in orientation.ravel()])],
        )
    ]
    groups = []
    for n, k in enumerate(order):
        position = np.array(origin) + normal(orientation) * step * ((k % volume.shape[2]) + shift)
        group = item(
            PlanePositionSequence=[item(ImagePositionPatient=[float(v) for v in position])],
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=n + 1)],
        )
        if rescale:
            slope, intercept = rescale[n]
            group.PixelValueTransformationSequence = [
                item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")
            ]
        if echoes:
            group.MREchoSequence = [item(EffectiveEchoTime=echoes[n])]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    save(made, path)
    return affine_of(orientation, spacing, step, origin)


Frame = tuple[int, np.ndarray, Sequence[float] | None]
"""Segment number, pixels (rows, columns), position."""


def write_seg(
    path: Path,
    frames: Sequence[Frame],
    names: Mapping[int, str],
    *,
    kind: str = "BINARY",
    orientation: np.ndarray = AXIAL,
    spacing: tuple[float, float] = (1.5, 0.5),
    **values: Any,
) -> Path:
    """Write a segmentation with these frames, in this order."""
    made = new_file(
        LABELMAP if kind == "LABELMAP" else SEG, "SEG", SegmentationType=kind, SeriesInstanceUID="1.9"
    )
    stacked = np.array([pixels for _, pixels, _ in frames])
    set_pixels(made, stacked.astype(np.uint8))
    if kind == "BINARY":
        made.BitsAllocated = made.BitsStored = 1
        made.HighBit = 0
        bits = np.packbits(stacked.astype(bool).ravel(), bitorder="little").tobytes()
        made.PixelData = bits + b"\0" * (len(bits) % 2)
    made.SegmentSequence = [
        item(SegmentNumber=n, SegmentLabel=name, SegmentAlgorithmType="MANUAL") for n, name in names.items()
    ]
    made.SharedFunctionalGroupsSequence = [item()]
    if frames[0][2] is not None:
        made.SharedFunctionalGroupsSequence = [
            item(
                PixelMeasuresSequence=[item(PixelSpacing=list(spacing), SliceThickness=2.5)],
                PlaneOrientationSequence=[
                    item(ImageOrientationPatient=[round(float(v), 9) for v in orientation.ravel()])
                ],
            )
        ]
    groups = []
    for number, _, position in frames:
        group = item()
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=number)]
        if position is not None:
            group.PlanePositionSequence = [item(ImagePositionPatient=[round(float(v), 6) for v in position])]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return save(made, path)


Contour = tuple[str, np.ndarray]
"""Geometric type, points (n, 3) in LPS mm."""


def write_rtstruct(path: Path, rois: Mapping[int, tuple[str, Sequence[Contour]]]) -> Path:
    """Write contours: ROI number → name and contours."""
    made = new_file(RTSTRUCT, "RTSTRUCT")
    made.StructureSetROISequence = [item(ROINumber=n, ROIName=name) for n, (name, _) in rois.items()]
    made.ROIContourSequence = [
        item(
            ReferencedROINumber=n,
            ContourSequence=[
                item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(points),
                    ContourData=[round(float(v), 4) for v in np.ravel(points)],
                )
                for kind, points in contours
            ],
        )
        for n, (_, contours) in rois.items()
    ]
    return save(made, path)
