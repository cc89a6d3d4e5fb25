"""A prediction as DICOM-SEG: refers to its source, says who it is of, and comes back voxel by voxel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from gossipseg.errors import DataError, LocalError
from gossipseg.learn.data.formats.dicom.image import read_dicom
from gossipseg.learn.data.formats.dicom.labels import is_segmentation, read_segmentation
from gossipseg.learn.data.formats.dicom.seg_writer import write_dicom_seg
from gossipseg.learn.data.formats.volume import Volume
from tests.learn.data import dicom_files as made

RNG = np.random.default_rng(5)
SHAPE = (7, 5, 6)
LABELS = RNG.integers(0, 3, SHAPE).astype(np.uint8) * (np.arange(6) % 4 > 0).astype(np.uint8)
NAMES = {0: "background", 1: "liver", 2: "Größe"}


def came_back(path: Path, image: Volume) -> np.ndarray:
    found = np.zeros(image.shape, np.uint8)
    for segment in read_segmentation(path, image).segments:
        found[segment.mask] = segment.number
    return found


@pytest.mark.parametrize("orientation", [made.AXIAL, made.SAGITTAL, made.OBLIQUE])
@pytest.mark.parametrize("step", [2.5, -2.5])
def test_labels_come_back_from_a_series(
    tmp_path: Path, orientation: np.ndarray, step: float, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    series = tmp_path / "s"
    made.write_series(
        series, np.zeros(SHAPE, np.int16), orientation=orientation, step=step, instances=[3, 1, 2, 6, 5, 4]
    )
    image = read_dicom(series, 3)
    write_dicom_seg(tmp_path / "out.dcm", LABELS, NAMES, series, image)
    assert is_segmentation(tmp_path / "out.dcm")
    assert np.array_equal(came_back(tmp_path / "out.dcm", image), LABELS)
    assert [s.name for s in read_segmentation(tmp_path / "out.dcm", image).segments] == ["liver", "Größe"]
    assert capfd.readouterr() == ("", "")


def test_it_refers_to_its_source_and_another_library_reads_it(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    made.write_series(tmp_path / "s", np.zeros(SHAPE, np.int16), SpacingBetweenSlices=7.0)
    write_dicom_seg(tmp_path / "out", LABELS, NAMES, tmp_path / "s", read_dicom(tmp_path / "s", 3))
    seg = highdicom.seg.segread(tmp_path / "out")
    source = pydicom.dcmread(tmp_path / "s/IM002.dcm")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert getattr(seg, keyword) == getattr(source, keyword)
    assert seg.SegmentationType == "BINARY" and seg.SeriesInstanceUID != source.SeriesInstanceUID
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == 2.5  # of the positions, not of the source's element
    (series,) = seg.ReferencedSeriesSequence
    uids = {pydicom.dcmread(p).SOPInstanceUID: p for p in (tmp_path / "s").iterdir()}
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} <= set(uids)
    for group in seg.PerFrameFunctionalGroupsSequence:
        (origin,) = group.DerivationImageSequence[0].SourceImageSequence
        of = pydicom.dcmread(uids[origin.ReferencedSOPInstanceUID])
        assert of.ImagePositionPatient == group.PlanePositionSequence[0].ImagePositionPatient
    assert len(seg.PerFrameFunctionalGroupsSequence) == 2 * 4  # slices 0 and 4 are empty
    pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)
    assert np.array_equal(pixels[0].T, LABELS[:, :, 2])


def test_labels_come_back_from_an_enhanced_multiframe_image(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    made.write_enhanced(tmp_path / "mr", np.zeros(SHAPE, np.int16), order=[3, 0, 5, 4, 1, 2])
    image = read_dicom(tmp_path / "mr", 3)
    write_dicom_seg(tmp_path / "out", LABELS, NAMES, tmp_path / "mr", image)
    assert np.array_equal(came_back(tmp_path / "out", image), LABELS)


@pytest.mark.parametrize("placed", [True, False])
def test_labels_come_back_from_a_picture(tmp_path: Path, placed: bool) -> None:
    pytest.importorskip("highdicom")
    path = tmp_path / "IM000.dcm"
    if placed:
        made.write_series(tmp_path, np.zeros((7, 5, 1), np.int16), orientation=made.OBLIQUE)
    else:
        made.picture(path, np.zeros((5, 7), np.uint16))
    image = read_dicom(path, 2)
    labels = LABELS[:, :, 1].T
    write_dicom_seg(tmp_path / "out", labels, NAMES, path, image)
    assert image.placed == placed and np.array_equal(came_back(tmp_path / "out", image), labels)


def test_an_empty_prediction_is_written_and_comes_back_empty(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    made.write_series(tmp_path / "s", np.zeros(SHAPE, np.int16))
    image = read_dicom(tmp_path / "s", 3)
    write_dicom_seg(tmp_path / "out", LABELS * 0, NAMES, tmp_path / "s", image)
    read = read_segmentation(tmp_path / "out", image)
    assert len(read.segments) == 2 and not came_back(tmp_path / "out", image).any()
    assert capfd.readouterr() == ("", "")


def test_classes_with_gaps_are_numbered_in_order(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    made.write_series(tmp_path / "s", np.zeros(SHAPE, np.int16))
    image = read_dicom(tmp_path / "s", 3)
    write_dicom_seg(tmp_path / "out", LABELS * 4, {4: "a", 8: "b", 6: "c"}, tmp_path / "s", image)
    read = read_segmentation(tmp_path / "out", image).segments
    assert [(s.number, s.name) for s in read] == [(1, "a"), (2, "c"), (3, "b")]
    assert np.array_equal(read[0].mask, LABELS == 1) and np.array_equal(read[2].mask, LABELS == 2)


def test_a_source_with_few_elements_is_enough(tmp_path: Path) -> None:
    """Anonymised series lack the patient, the dates, and often the frame of reference."""
    pytest.importorskip("highdicom")
    made.write_series(tmp_path / "s", np.zeros(SHAPE, np.int16))
    for path in (tmp_path / "s").iterdir():
        slice_ = pydicom.dcmread(path)
        for keyword in ("PatientID", "PatientName", "FrameOfReferenceUID", "InstanceNumber"):
            del slice_[keyword]
        slice_.save_as(path)
    image = read_dicom(tmp_path / "s", 3)
    write_dicom_seg(tmp_path / "out", LABELS, NAMES, tmp_path / "s", image)
    assert np.array_equal(came_back(tmp_path / "out", image), LABELS)


def test_other_alphabets_survive(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    made.write_series(
        tmp_path / "s",
        np.zeros(SHAPE, np.int16),
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jörg",
    )
    write_dicom_seg(tmp_path / "out", LABELS, NAMES, tmp_path / "s", read_dicom(tmp_path / "s", 3))
    assert str(pydicom.dcmread(tmp_path / "out").PatientName) == "Müller^Jörg"


@pytest.mark.parametrize(
    ("labels", "says"),
    [(LABELS[:6], "do not lie on the grid"), (LABELS + 7, r"values without a name: \[7, 8, 9\]")],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: Any, says: str) -> None:
    pytest.importorskip("highdicom")
    made.write_series(tmp_path / "s", np.zeros(SHAPE, np.int16))
    with pytest.raises(DataError, match=says):
        write_dicom_seg(tmp_path / "out", labels, NAMES, tmp_path / "s", read_dicom(tmp_path / "s", 3))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_referred_to_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    (tmp_path / "x.nii").write_bytes(b"\0" * 400)
    image = Volume(np.zeros((1, *SHAPE)), np.eye(4))
    with pytest.raises(DataError, match="refers to DICOM images, this is none"):
        write_dicom_seg(tmp_path / "out", LABELS, NAMES, tmp_path / "x.nii", image)
    path = made.picture(tmp_path / "p", np.zeros((5, 7), np.uint16))
    picture = pydicom.dcmread(path)
    del picture.StudyInstanceUID
    picture.save_as(path)
    with pytest.raises(DataError, match=r"StudyInstanceUID \(0020,000D\): is missing"):
        write_dicom_seg(tmp_path / "out", LABELS[:, :, 0].T, NAMES, path, read_dicom(path, 2))


def test_without_highdicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(LocalError, match=r"highdicom.*pip install 'gossipseg\[dicom\]'"):
        write_dicom_seg(tmp_path / "out", LABELS, NAMES, tmp_path, Volume(np.zeros((1, *SHAPE)), np.eye(4)))
