"""DICOM images: where every voxel lies and what it means, or a refusal with the numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from gossipseg.errors import DataError, LocalError
from gossipseg.learn.data.formats.dicom.image import is_dicom, read_dicom
from tests.learn.data import dicom_files as made

RNG = np.random.default_rng(7)
VOLUME = RNG.integers(-1000, 2000, (7, 6, 5)).astype(np.int16)
"""(column, row, slice)."""
PIXELS = RNG.integers(0, 4000, (6, 7)).astype(np.uint16)


# ------------------------------------------------------------------ geometry
@pytest.mark.parametrize("orientation", [made.AXIAL, made.SAGITTAL, made.OBLIQUE])
@pytest.mark.parametrize(
    "instances", [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 1, 5, 2, 4], [1] * 5, [None] * 5]
)
def test_slices_lie_where_their_positions_say(
    tmp_path: Path, orientation: np.ndarray, instances: list[int | None]
) -> None:
    affine = made.write_series(tmp_path, VOLUME, orientation=orientation, instances=instances)
    read = read_dicom(tmp_path, 3)
    assert np.array_equal(read.array[0], VOLUME) and read.array.dtype == np.int16
    assert read.affine == pytest.approx(affine, abs=1e-5)
    assert read.spacing_mm == pytest.approx((0.5, 1.5, 2.5)) and read.placed


def test_slices_stored_downwards_are_turned_with_their_affine(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME, step=-2.5)
    read = read_dicom(tmp_path, 3)
    assert np.array_equal(read.array[0], VOLUME[:, :, ::-1])
    assert read.affine == pytest.approx(made.affine_of(made.AXIAL, (1.5, 0.5), 2.5, (30, -20, 0)))


def test_spacing_comes_from_positions_not_from_the_thickness(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME, SliceThickness=5.0, SpacingBetweenSlices=7.0)
    assert read_dicom(tmp_path, 3).spacing_mm == pytest.approx((0.5, 1.5, 2.5))


def test_rounded_positions_pass(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME, step=0.625, offsets={2: (0, 0, 0.005), 3: (0, 0, -0.004)})
    assert read_dicom(tmp_path, 3).spacing_mm == pytest.approx((0.5, 1.5, 0.625), abs=1e-3)


def test_steps_that_drift_are_refused_before_they_add_up(tmp_path: Path) -> None:
    volume = np.zeros((4, 3, 60), np.int16)
    # Steps of 2.5 mm, then of 2.52: each within a hundredth of the usual.
    made.write_series(
        tmp_path / "a", volume[:, :, :8], offsets={k: (0, 0, 0.02 * (k - 4)) for k in (5, 6, 7)}
    )
    assert read_dicom(tmp_path / "a", 3).spacing_mm == pytest.approx((0.5, 1.5, 2.509), abs=1e-3)
    made.write_series(tmp_path / "b", volume, offsets={k: (0, 0, 0.02 * (k - 30)) for k in range(31, 60)})
    with pytest.raises(DataError, match="not evenly spaced"):
        read_dicom(tmp_path / "b", 3)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            {"leave_out": (1, 2)},
            r"gap of 7\.5 mm between \S*/IM000\.dcm and \S*/IM003\.dcm, where 2\.5 mm is usual; 2 slices",
        ),
        ({"leave_out": (3,)}, r"gap of 5 mm between \S*/IM002\.dcm and \S*/IM004\.dcm.*1 slice is missing"),
        ({"offsets": {2: (0, 0, 0.3)}}, r"a gap of 2\.8 mm between \S*/IM001\.dcm and \S*/IM002\.dcm"),
        ({"offsets": {k: (0.4 * k, 0, 0) for k in range(5)}}, r"leans by 9\.1°.*0\.4 mm sideways"),
        ({"offsets": {2: (0, 3, 0)}}, r"a slice lies 3 mm beside the line"),
        ({"offsets": {2: (0, 0, -2.5)}}, r"only 4 positions: 2 at 12\.5 mm.*IM001\.dcm, \S*/IM002\.dcm"),
    ],
)  # fmt: skip
def test_uneven_stacks_are_refused_with_the_numbers(tmp_path: Path, how: dict[str, Any], says: str) -> None:
    made.write_series(tmp_path, VOLUME, **how)
    with pytest.raises(DataError, match=says):
        read_dicom(tmp_path, 3)


@pytest.mark.parametrize(
    ("keyword", "a", "b", "says"),
    [
        ("EchoTime", 10, 80, r"EchoTime \(0018,0081\): 10(\.0)?, 80"),
        ("DiffusionBValue", 0.0, 1000.0, r"DiffusionBValue \(0018,9087\): 0\.0, 1000"),
        ("TemporalPositionIdentifier", 1, 2, r"TemporalPositionIdentifier \(0020,0100\): 1, 2"),
        ("AcquisitionNumber", 1, 2, r"AcquisitionNumber \(0020,0012\): 1, 2"),
        ("ImageType", ["ORIGINAL", "M"], ["ORIGINAL", "P"], r"ImageType .*: ORIGINAL\\M, ORIGINAL\\P"),
    ],
)  # fmt: skip
def test_two_volumes_in_one_series_are_refused(
    tmp_path: Path, keyword: str, a: object, b: object, says: str
) -> None:
    made.write_series(tmp_path / "a", VOLUME, **{keyword: a})
    made.write_series(tmp_path / "b", VOLUME, **{keyword: b})
    with pytest.raises(DataError, match=r"10 slices lie at only 5 positions.*" + says):
        read_dicom(tmp_path, 3)


@pytest.mark.parametrize(
    ("keyword", "a", "b"),
    [("EchoTime", 10, 80), ("EchoTime", 10, None), ("DiffusionBValue", 0.0, 800.0), ("EchoNumbers", 1, 2)],
)
def test_halves_of_two_volumes_are_not_put_together(
    tmp_path: Path, keyword: str, a: object, b: object
) -> None:
    made.write_series(tmp_path / "a", VOLUME, **{keyword: a})
    made.write_series(tmp_path / "b", VOLUME, origin=(30, -20, 22.5), **({keyword: b} if b else {}))
    with pytest.raises(DataError, match=keyword + r" \(.*differs within the series"):
        read_dicom(tmp_path, 3)


def test_a_mosaic_is_no_slice(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    with pytest.raises(DataError, match="mosaic"):
        read_dicom(tmp_path, 3)


def test_two_stacks_in_one_series_are_refused(tmp_path: Path) -> None:
    made.write_series(tmp_path / "a", VOLUME)
    made.write_series(tmp_path / "b", VOLUME, origin=(30, -20, 60))
    with pytest.raises(DataError, match=r"gap of 40 mm"):
        read_dicom(tmp_path, 3)


def test_two_orientations_are_refused(tmp_path: Path) -> None:
    made.write_series(tmp_path / "a", VOLUME)
    made.write_series(tmp_path / "b", VOLUME, orientation=made.SAGITTAL)
    with pytest.raises(DataError, match=r"ImageOrientationPatient.*2 orientations"):
        read_dicom(tmp_path, 3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"spacing": (1.5, 0.6)}, r"PixelSpacing \(0028,0030\): differs.*\(1\.5, 0\.5\) in .*\(1\.5, 0\.6\)"),
        ({"Modality": "MR"}, "Modality .*differs within the series: CT in .*MR in"),
        ({"FrameOfReferenceUID": "1.9.9"}, "FrameOfReferenceUID .*differs"),
        ({"RescaleSlope": 2.0}, "RescaleSlope .*differs.*None in"),
    ],
)  # fmt: skip
def test_slices_that_do_not_belong_together_are_refused(
    tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    made.write_series(tmp_path / "a", VOLUME)
    made.write_series(tmp_path / "b", VOLUME[:, :, :1], origin=(30, -20, 22.5), **values)
    with pytest.raises(DataError, match=says):
        read_dicom(tmp_path, 3)


def test_slices_of_other_size_are_refused(tmp_path: Path) -> None:
    made.write_series(tmp_path / "a", VOLUME)
    made.write_series(tmp_path / "b", VOLUME[:6, :, :1], origin=(30, -20, 22.5))
    with pytest.raises(DataError, match=r"Rows, Columns: differs.*\(6, 7\) in .*\(6, 6\) in"):
        read_dicom(tmp_path, 3)


@pytest.mark.parametrize(
    ("keyword", "value", "says"),
    [
        ("ImagePositionPatient", None, r"ImagePositionPatient \(0020,0032\): is missing in 1 of 5"),
        ("ImageOrientationPatient", None, r"ImageOrientationPatient \(0020,0037\): is missing in 1 of 5"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "two directions of length 1 at right angles"),
        ("PixelSpacing", [0, 0], r"PixelSpacing \(0028,0030\).*must be positive"),
        ("ImagePositionPatient", [1, 2], r"must hold 3 numbers"),
    ],
)
def test_malformed_geometry_names_the_tag(tmp_path: Path, keyword: str, value: Any, says: str) -> None:
    made.write_series(tmp_path, VOLUME)
    slice_ = pydicom.dcmread(tmp_path / "IM002.dcm")
    setattr(slice_, keyword, value)
    slice_.save_as(tmp_path / "IM002.dcm")
    with pytest.raises(DataError, match=says):
        read_dicom(tmp_path, 3)


def test_numbers_that_are_none_name_file_and_tag(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME)
    path = tmp_path / "IM002.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.5\\0.5", b"1,5\\0,5"))
    with pytest.raises(DataError, match=r"IM002\.dcm: PixelSpacing \(0028,0030\)"):
        read_dicom(tmp_path, 3)


def test_one_slice_takes_its_thickness_and_says_so(tmp_path: Path) -> None:
    made.write_series(tmp_path / "thick", VOLUME[:, :, :1], SliceThickness=4.0)
    read = read_dicom(tmp_path / "thick", 3)
    assert read.spacing_mm == pytest.approx((0.5, 1.5, 4)) and "one slice only" in " ".join(read.notes)
    made.write_series(tmp_path / "thin", VOLUME[:, :, :1])
    with pytest.raises(DataError, match="neither SpacingBetweenSlices nor SliceThickness"):
        read_dicom(tmp_path / "thin", 3)
    with pytest.raises(DataError, match="one slice of a series"):
        read_dicom(tmp_path / "thick/IM000.dcm", 3)


# ------------------------------------------------------------------ multi-frame
def test_enhanced_multiframe_is_sorted_and_rescaled_frame_by_frame(tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]
    rescale = [(1.0 + k, -10.0 * k) for k in order]
    affine = made.write_enhanced(
        tmp_path / "mr", VOLUME, order=order, rescale=rescale, orientation=made.OBLIQUE
    )
    read = read_dicom(tmp_path / "mr", 3)
    expected = VOLUME * (1.0 + np.arange(5)) - 10.0 * np.arange(5)
    assert np.array_equal(read.array[0], expected.astype(np.float32)) and read.array.dtype == np.float32
    assert read.affine == pytest.approx(affine, abs=1e-5)


def test_enhanced_multiframe_of_two_echoes_is_refused(tmp_path: Path) -> None:
    made.write_enhanced(tmp_path / "mr", VOLUME, order=list(range(10)), echoes=[10.0] * 5 + [80.0] * 5)
    with pytest.raises(
        DataError, match=r"10 slices lie at only 5 positions.*frame 1.*EffectiveEchoTime.*10\.0, 80"
    ):
        read_dicom(tmp_path / "mr", 3)


def test_one_volume_in_two_enhanced_files_is_put_together(tmp_path: Path) -> None:
    made.write_enhanced(tmp_path / "1", VOLUME[:, :, :3])
    affine = made.write_enhanced(tmp_path / "2", VOLUME[:, :, 3:], shift=3)
    read = read_dicom(tmp_path, 3)
    assert np.array_equal(read.array[0], VOLUME) and read.affine == pytest.approx(affine)


def test_frames_without_places_are_no_volume_and_no_picture(tmp_path: Path) -> None:
    path = made.picture(tmp_path / "cine", RNG.integers(0, 255, (4, 6, 7)).astype(np.uint8), modality="US")
    with pytest.raises(DataError, match=r"ImagePositionPatient \(0020,0032\): is missing in 4 of 4"):
        read_dicom(path, 3)
    with pytest.raises(DataError, match="holds 4 frames"):
        read_dicom(path, 2)


# ------------------------------------------------------------------ pictures
def test_a_placed_slice_of_a_2d_task_has_rows_and_columns(tmp_path: Path) -> None:
    affine = made.write_series(tmp_path, VOLUME[:, :, :1], orientation=made.OBLIQUE)
    read = read_dicom(tmp_path / "IM000.dcm", 2)
    assert np.array_equal(read.array[0], VOLUME[:, :, 0].T) and read.placed
    assert read.spacing_mm == pytest.approx((1.5, 0.5))
    row_column = np.array([2.0, 3.0, 0, 1])
    column_row = np.array([3.0, 2.0, 0, 1])
    assert read.affine is not None
    assert read.affine @ row_column == pytest.approx(affine @ column_row, abs=1e-5)
    assert np.linalg.det(read.affine) != 0


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"])
def test_pictures_without_a_position_know_their_pixel_size(tmp_path: Path, keyword: str) -> None:
    read = read_dicom(made.picture(tmp_path / "x", PIXELS, **{keyword: [0.2, 0.1]}), 2)
    assert np.array_equal(read.array[0], PIXELS) and not read.placed
    assert read.affine == pytest.approx(np.diag([0.2, 0.1, 1, 1]))


def test_pictures_without_a_pixel_size_have_no_affine(tmp_path: Path) -> None:
    assert read_dicom(made.picture(tmp_path / "x", PIXELS), 2).affine is None


def test_ultrasound_takes_the_size_from_its_one_region(tmp_path: Path) -> None:
    region = made.item(
        PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.01, PhysicalDeltaY=0.02
    )
    read = read_dicom(made.picture(tmp_path / "us", PIXELS, SequenceOfUltrasoundRegions=[region]), 2)
    assert read.affine == pytest.approx(np.diag([0.2, 0.1, 1, 1]))
    two = made.picture(tmp_path / "two", PIXELS, SequenceOfUltrasoundRegions=[region, region])
    assert read_dicom(two, 2).affine is None


# ------------------------------------------------------------------ intensities
def test_integers_stay_integers(tmp_path: Path) -> None:
    values: Any = {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11}
    made.write_series(tmp_path, np.abs(VOLUME).astype(np.uint16), **values)
    read = read_dicom(tmp_path, 3)
    assert read.array.dtype == np.int16 and np.array_equal(read.array[0], np.abs(VOLUME) - 1024)


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    for k in range(3):
        made.write_series(
            tmp_path / str(k),
            VOLUME[:, :, k : k + 1],
            origin=(0, 0, 2.5 * k),
            RescaleSlope=0.5 + k,
            RescaleIntercept=0.25,
        )
    read = read_dicom(tmp_path, 3)
    expected = VOLUME[:, :, :3] * (0.5 + np.arange(3)) + 0.25
    assert read.array.dtype == np.float32 and np.array_equal(read.array[0], expected.astype(np.float32))


@pytest.mark.parametrize(("sign", "dtype"), [(0, np.uint16), (1, np.int16)])
def test_monochrome1_is_turned_round(tmp_path: Path, sign: int, dtype: Any) -> None:
    pixels = PIXELS.astype(dtype) - sign * 2000
    values: Any = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    pixels = np.clip(pixels, -2048 * sign, 4095 - 2048 * sign).astype(dtype)
    path = made.picture(tmp_path / "x", pixels, **values)
    read = read_dicom(path, 2)
    assert np.array_equal(read.array[0].astype(int), (-1 if sign else 4095) - pixels.astype(int))
    assert any("MONOCHROME1" in n for n in read.notes)
    assert np.array_equal(read_dicom(path, 2, as_label=True).array[0], pixels)


def test_hounsfield_units_stay_however_they_are_displayed(tmp_path: Path) -> None:
    made.write_series(
        tmp_path, VOLUME, PhotometricInterpretation="MONOCHROME1", RescaleSlope=1, RescaleIntercept=-5
    )
    read = read_dicom(tmp_path, 3)
    assert np.array_equal(read.array[0], VOLUME - 5) and any("MONOCHROME1" in n for n in read.notes)


@pytest.mark.parametrize("sign", [0, 1])
def test_bits_above_the_stored_ones_are_overlays_and_cut_off(tmp_path: Path, sign: int) -> None:
    values = RNG.integers(-2048 * sign, 2047, (6, 7))
    stored = (values & 0x0FFF) | (RNG.integers(0, 16, values.shape) << 12)
    path = made.picture(
        tmp_path / "x", stored.astype(np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=sign
    )
    assert np.array_equal(read_dicom(path, 2).array[0], values)


def test_values_in_the_upper_bits_are_moved_down(tmp_path: Path) -> None:
    path = made.picture(tmp_path / "x", (PIXELS << 4).astype(np.uint16), BitsStored=12, HighBit=15)
    assert np.array_equal(read_dicom(path, 2).array[0], PIXELS)


def test_a_palette_is_applied_to_images_and_kept_in_labels(tmp_path: Path) -> None:
    index = RNG.integers(0, 4, (6, 7)).astype(np.uint8)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0], [9, 8, 7]], np.uint8)
    tables: dict[str, Any] = {}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        tables[f"{name}PaletteColorLookupTableData"] = colours[:, channel].tobytes()
    path = made.picture(tmp_path / "x", index, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert np.array_equal(read_dicom(path, 2).array, colours[index].transpose(2, 0, 1))
    assert np.array_equal(read_dicom(path, 2, as_label=True).array[0], index)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rgb_by_pixel_and_by_plane(tmp_path: Path, dtype: Any) -> None:
    rgb = RNG.integers(0, 255, (6, 7, 3)).astype(dtype)
    by_pixel = read_dicom(made.picture(tmp_path / "a", rgb), 2)
    path = made.picture(tmp_path / "b", rgb, PlanarConfiguration=1)
    image = pydicom.dcmread(path)
    image.PixelData = rgb.transpose(2, 0, 1).tobytes()
    made.save(image, path)
    assert np.array_equal(by_pixel.array, rgb.transpose(2, 0, 1))
    assert np.array_equal(read_dicom(path, 2).array, by_pixel.array)


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    from PIL import Image

    rgb = RNG.integers(0, 255, (6, 7, 3)).astype(np.uint8)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    path = made.picture(tmp_path / "x", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read_dicom(path, 2).array.transpose(1, 2, 0).astype(int) - rgb).max() <= 3


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    index = RNG.integers(0, 4, (6, 7)).astype(np.uint8)
    lut = made.item(LUTDescriptor=[4, 0, 16], ModalityLUTType="US", LUTData=[10, 500, 3000, 7])
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    path = made.picture(tmp_path / "x", index, ModalityLUTSequence=[lut])
    assert np.array_equal(read_dicom(path, 2).array[0], np.array([10, 500, 3000, 7])[index])


def test_unknown_colours_are_refused(tmp_path: Path) -> None:
    path = made.picture(tmp_path / "x", PIXELS, PhotometricInterpretation="HSV")
    with pytest.raises(DataError, match=r"PhotometricInterpretation \(0028,0004\) = 'HSV'"):
        read_dicom(path, 2)


# ------------------------------------------------------------------ compressed
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
def test_lossless_compression_gives_the_same_voxels(
    tmp_path: Path, syntax: Any, sign: int, bits: int, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jpeg_ls" if syntax == JPEGLSLossless else "openjpeg")
    volume = np.tile(VOLUME, (6, 6, 1)) if sign else np.abs(np.tile(VOLUME, (6, 6, 1))).astype(np.uint16)
    made.write_series(tmp_path, volume, BitsStored=bits, HighBit=bits - 1)
    for path in tmp_path.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.compress(syntax, generate_instance_uid=False)
        slice_.save_as(path)
    assert np.array_equal(read_dicom(tmp_path, 3).array[0], volume)
    assert capfd.readouterr() == ("", "")


def jpeg_lossless(path: Path, out: Path) -> Path:
    """The file with its pixels as JPEG Lossless, by another library."""
    gdcm = pytest.importorskip("gdcm")
    reader, writer, change = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(out))
    assert writer.Write()
    return out


@pytest.mark.parametrize("sign", [0, 1])
def test_jpeg_lossless_gives_the_same_voxels(tmp_path: Path, sign: int) -> None:
    pixels = VOLUME[:, :, 0].T if sign else PIXELS
    jpeg_lossless(made.picture(tmp_path / "x", pixels), tmp_path / "y")
    assert pydicom.dcmread(tmp_path / "y").file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert np.array_equal(read_dicom(tmp_path / "y", 2).array[0], pixels)


@pytest.mark.parametrize("sign", [0, 1])
def test_jpeg_lossless_of_twelve_bits_keeps_the_sign(tmp_path: Path, sign: int) -> None:
    pixels = (RNG.integers(-2048, 2047, (16, 20)) + 2048 * (1 - sign)).astype(np.int16 if sign else np.uint16)
    path = made.picture(tmp_path / "x", pixels, BitsStored=12, HighBit=11)
    assert np.array_equal(read_dicom(jpeg_lossless(path, tmp_path / "y"), 2).array[0], pixels)


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_byte_orders_and_deflated_files(tmp_path: Path, syntax: Any) -> None:
    made.write_series(tmp_path, VOLUME)
    for path in tmp_path.iterdir():
        slice_ = pydicom.dcmread(path)
        little = syntax != ExplicitVRBigEndian
        if not little:
            slice_.PixelData = slice_.pixel_array.astype(">i2").tobytes()
        slice_.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, slice_, implicit_vr=False, little_endian=little, enforce_file_format=True)
    assert np.array_equal(read_dicom(tmp_path, 3).array[0], VOLUME)


def jpeg_of(rgb: np.ndarray) -> bytes:
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(rgb).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def compressed_picture(path: Path, pixels: np.ndarray, syntax: Any, stream: bytes, **values: Any) -> Path:
    image = made.set_pixels(made.new_file(made.DX, "DX"), pixels, **values)
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = encapsulate([stream])
    image["PixelData"].is_undefined_length = True
    return made.save(image, path)


def test_jpeg_in_ybr_becomes_rgb(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(10, 240, 32), (24, 1))
    rgb = np.stack([smooth, 255 - smooth, np.full_like(smooth, 60)], -1).astype(np.uint8)
    path = compressed_picture(
        tmp_path / "x", rgb, JPEGBaseline8Bit, jpeg_of(rgb), PhotometricInterpretation="YBR_FULL_422"
    )
    assert np.abs(read_dicom(path, 2).array.transpose(1, 2, 0).astype(int) - rgb).max() < 12


def test_a_stream_that_cannot_be_decoded_names_syntax_and_remedy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = compressed_picture(tmp_path / "x", PIXELS, JPEGLosslessSV1, b"\xff\xd8\xff\xd9")
    with pytest.raises(DataError, match=r"JPEG Lossless.*pip install 'gossipseg\[dicom\]'") as caught:
        read_dicom(path, 2)
    assert "pylibjpeg-libjpeg" in str(caught.value) and "Replace the file" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_video_is_refused_by_its_name(tmp_path: Path) -> None:
    path = compressed_picture(tmp_path / "x", PIXELS, "1.2.840.10008.1.2.4.102", b"\0" * 40)
    with pytest.raises(DataError, match=r"MPEG-4.*No decoder is known"):
        read_dicom(path, 2)


def test_a_torn_jpeg_is_not_filled_with_grey(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    stream = jpeg_of(rgb)
    path = compressed_picture(
        tmp_path / "x",
        rgb,
        JPEGBaseline8Bit,
        stream[: len(stream) // 2],
        PhotometricInterpretation="YBR_FULL_422",
    )
    with pytest.raises(DataError, match="truncated"):
        read_dicom(path, 2)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_torn_stream_in_a_whole_file_is_named(tmp_path: Path, syntax: Any) -> None:
    pytest.importorskip("jpeg_ls" if syntax == JPEGLSLossless else "openjpeg")
    pixels = RNG.integers(0, 4000, (64, 64)).astype(np.uint16)
    whole = made.set_pixels(made.new_file(made.DX, "DX"), pixels)
    whole.compress(syntax)
    stream = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
    for share in (0.3, 0.98):
        path = compressed_picture(tmp_path / "x", pixels, syntax, stream[: int(len(stream) * share)])
        with pytest.raises(DataError, match=r"PixelData .*truncated"):
            read_dicom(path, 2)


def test_more_pixels_than_the_header_tells_are_no_image(tmp_path: Path) -> None:
    path = made.picture(tmp_path / "x", np.stack([PIXELS, PIXELS]), NumberOfFrames=1)
    with pytest.raises(DataError, match=r"holds 168 bytes, 84 are expected for 1 frame\(s\) of 6×7"):
        read_dicom(path, 2)


def test_a_garbled_jpeg_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rgb = RNG.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    stream = bytearray(jpeg_of(rgb))
    stream[1200:1900] = b"\xff\xd0" * 350
    path = compressed_picture(
        tmp_path / "x", rgb, JPEGBaseline8Bit, bytes(stream), PhotometricInterpretation="YBR_FULL_422"
    )
    with pytest.raises(DataError, match=r"JPEG Baseline.*damaged"):
        read_dicom(path, 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_files_are_named(tmp_path: Path, share: float, compressed: bool) -> None:
    volume = RNG.integers(-1000, 2000, (50, 40, 3)).astype(np.int16)
    made.write_series(tmp_path, volume)
    path = tmp_path / "IM002.dcm"
    if compressed:
        slice_ = pydicom.dcmread(path)
        slice_.compress(JPEG2000Lossless, generate_instance_uid=False)
        slice_.save_as(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"IM002\.dcm"):
        read_dicom(tmp_path, 3)


# ------------------------------------------------------------------ folders
@pytest.mark.parametrize("name", ["IM{:06d}", "{:08d}.IMA", "a{0}/b/c/I{0:03d}", "x.{0}", "1.2.840.{}.DCM"])
def test_files_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    affine = made.write_series(tmp_path, VOLUME, name=name)
    for other in ("DICOMDIR", ".DS_Store", "._IM000001", "Thumbs.db", "desktop.ini"):
        (tmp_path / other).write_bytes(b"\0\1\2")
    read = read_dicom(tmp_path, 3)
    assert np.array_equal(read.array[0], VOLUME) and read.affine == pytest.approx(affine) and not read.notes


@pytest.mark.parametrize("name", ["IM{:03d}.dcm", "IM{:03d}.ima", "IM{:03d}"])
def test_files_without_a_preamble_are_known(tmp_path: Path, name: str) -> None:
    made.write_series(tmp_path, VOLUME, name=name)
    for path in tmp_path.iterdir():
        slice_ = pydicom.dcmread(path)
        del slice_.file_meta
        slice_.preamble = None
        pydicom.dcmwrite(path, slice_, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM" and is_dicom(path)
    assert np.array_equal(read_dicom(tmp_path, 3).array[0], VOLUME)


def test_other_files_are_counted_and_named(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME)
    (tmp_path / "readme.txt").write_text("a")
    (tmp_path / "VERSION").write_text("b")
    assert not is_dicom(tmp_path / "readme.txt") and not is_dicom(tmp_path / "nothing")
    assert "2 files: VERSION, readme.txt" in " ".join(read_dicom(tmp_path, 3).notes)


def test_other_files_beside_one_without_a_number_are_no_lost_slices(tmp_path: Path) -> None:
    made.write_enhanced(tmp_path / "scan", VOLUME)
    (tmp_path / "readme.txt").write_text("a")
    assert "1 files: readme.txt" in " ".join(read_dicom(tmp_path, 3).notes)


def test_what_file_browsers_and_archives_leave_is_no_news(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME)
    for name in ("__MACOSX/IM000.dcm", "@eaDir/IM000.dcm/THUMB_M.jpg", "ehthumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\1\2")
    assert not read_dicom(tmp_path, 3).notes


@pytest.mark.parametrize("content", [b"", b"\0" * 500])
@pytest.mark.parametrize("name", ["IM{:03d}.dcm", "IM{:03d}", "{}.x"])
def test_a_broken_slice_at_the_end_is_not_taken_for_another_file(
    tmp_path: Path, content: bytes, name: str
) -> None:
    made.write_series(tmp_path, VOLUME, name=name)
    (tmp_path / name.format(4)).write_bytes(content)
    with pytest.raises(DataError, match="named as a DICOM file but is"):
        read_dicom(tmp_path, 3)


def test_an_empty_file_with_the_suffix_is_a_lost_slice(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME)
    (tmp_path / "last.DCM").touch()
    with pytest.raises(DataError, match=r"last\.DCM: is named as a DICOM file but is empty"):
        read_dicom(tmp_path, 3)


def test_links_that_go_round_and_copies_count_once(tmp_path: Path) -> None:
    made.write_series(tmp_path / "s", VOLUME)
    (tmp_path / "s/round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "s/again.dcm").symlink_to(tmp_path / "s/IM000.dcm")
    (tmp_path / "s/copy.dcm").write_bytes((tmp_path / "s/IM001.dcm").read_bytes())
    read = read_dicom(tmp_path, 3)
    assert np.array_equal(read.array[0], VOLUME) and "copies" in " ".join(read.notes)


def test_slices_that_an_anonymiser_gave_one_uid_are_told_apart_by_place(tmp_path: Path) -> None:
    made.write_series(tmp_path, VOLUME, SOPInstanceUID="1.2.9")
    assert np.array_equal(read_dicom(tmp_path, 3).array[0], VOLUME)


def test_objects_and_localizers_beside_a_series_are_set_aside_by_name(tmp_path: Path) -> None:
    made.write_series(tmp_path / "ct", VOLUME)
    made.write_series(
        tmp_path / "scout", VOLUME[:, :, :1], orientation=made.SAGITTAL,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.7",
    )  # fmt: skip
    made.write_seg(tmp_path / "seg", [(1, np.ones((6, 7)), (30, -20, 10))], {1: "a"})
    made.picture(tmp_path / "dose", PIXELS, modality="CT", SeriesInstanceUID="1.8")
    read = read_dicom(tmp_path, 3)
    assert np.array_equal(read.array[0], VOLUME)
    said = " | ".join(read.notes)
    assert "localizers" in said and "1 SEG" in said and "without a position" in said


def test_a_localizer_alone_is_no_volume(tmp_path: Path) -> None:
    for k, orientation in enumerate((made.AXIAL, made.SAGITTAL)):
        made.write_series(
            tmp_path / str(k), VOLUME[:, :, :1], orientation=orientation, ImageType=["ORIGINAL", "LOCALIZER"]
        )
    with pytest.raises(DataError, match="localizer"):
        read_dicom(tmp_path, 3)


def test_two_series_in_a_folder_are_listed(tmp_path: Path) -> None:
    made.write_series(tmp_path / "a", VOLUME, SeriesDescription="thin")
    made.write_series(tmp_path / "b", VOLUME[:, :, :4], SeriesInstanceUID="1.7", SeriesDescription="thick")
    with pytest.raises(DataError, match=r"holds 2 DICOM series: CT 'thin', 5 slices.*CT 'thick', 4 slices"):
        read_dicom(tmp_path, 3)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    seg = made.write_seg(tmp_path / "seg/seg", [(1, np.ones((6, 7)), (30, -20, 10))], {1: "a"})
    with pytest.raises(DataError, match="of the kind SEG, not an image"):
        read_dicom(seg, 3)
    with pytest.raises(DataError, match="no DICOM image, only SEG"):
        read_dicom(seg.parent, 3)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no DICOM files"):
        read_dicom(tmp_path / "none", 3)
    with pytest.raises(DataError, match="no such file"):
        read_dicom(tmp_path / "nowhere", 3)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.picture(tmp_path / "x", PIXELS)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert is_dicom(path)
    with pytest.raises(LocalError, match=r"Install gossipseg\[dicom\]: pip install 'gossipseg\[dicom\]'"):
        read_dicom(path, 2)


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_ends_in_a_traceback(tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes of a header are overwritten at random: read in full, or a DataError, and never a word beside."""
    rng = random.Random(seed)
    made.write_series(tmp_path, VOLUME[:, :, :2], SliceThickness=2.0, RescaleSlope=1, RescaleIntercept=0)
    path = tmp_path / "IM001.dcm"
    torn = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 6)):
        torn[rng.randrange(132, len(torn) - 84)] = rng.randrange(256)
    path.write_bytes(bytes(torn))
    try:
        assert read_dicom(tmp_path, 3).array.ndim == 4
    except DataError as e:
        assert str(tmp_path) in str(e)
    assert capfd.readouterr() == ("", "")
