"""Label maps come back in the image's own format, place and rows, and say where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from gossipseg.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, DataError
from gossipseg.learn.commands.predict import main, written_values
from gossipseg.learn.data.formats.grid import onto_image
from gossipseg.learn.data.formats.kinds import suffix_of
from gossipseg.learn.data.formats.volume import Segmentation, Volume
from gossipseg.learn.data.formats.writing import encode, possible_suffixes, suffix_for
from gossipseg.learn.data.readers import read_label, read_volume
from tests.learn.data.test_formats import AFFINE, PLACED, SHAPE, itk_image, nifti, nrrd, space, values
from tests.learn.imagery import (
    GREY,
    VOLUME,
    blob,
    spec,
    spec_file,
    write_checkpoint,
    write_dicom_series,
    write_nifti,
)


def labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)


def written(source: Path, made: np.ndarray, dims: int, format: str = "auto") -> tuple[Path, str]:
    """The label map of an image as predict writes it, and what it says."""
    volume = read_volume(source, dims)
    suffix, note = suffix_for(source, volume, format)
    assert suffix in possible_suffixes(source, format)
    out = source.parent / f"out{suffix}"
    out.write_bytes(encode(made, source, volume, suffix))
    return out, note


def back(out: Path, source: Path, dims: int) -> np.ndarray:
    """As a label of the image."""
    image = read_volume(source, dims)
    mask = read_label(out, dims, image)
    assert isinstance(mask, Volume)
    return onto_image(mask.array, mask.affine, image, out, source)[0]


OWN = {".nii": ".nii.gz", ".mgh": ".mgz", ".mhd": ".mha", ".nhdr": ".nrrd"}


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("top", [2, 255, 700])
def test_a_placed_image_gets_its_label_map_in_its_own_format_and_place(
    tmp_path: Path, name: str, top: int
) -> None:
    PLACED[name](tmp_path / name)
    made = written_values(labels(), {2: top})
    out, _ = written(tmp_path / name, made, 3)
    own = suffix_of(name)
    assert out.name == "out" + OWN.get(own, own)
    found = read_volume(out, 3)
    assert found.affine is not None and found.placed
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
    assert np.array_equal(back(out, tmp_path / name, 3), made)


def test_values_take_the_smallest_type_that_holds_them() -> None:
    assert written_values(labels(), {2: 255}).dtype == np.uint8
    wide = written_values(labels(), {1: 1, 2: 256})
    assert wide.dtype == np.uint16 and np.array_equal(wide, np.array([0, 1, 256])[labels()])


@pytest.mark.parametrize("codes", [(1, 2), (0, 2), (1, 0), (0, 0)])
@pytest.mark.parametrize("unit", [2, 3])
def test_a_nifti_header_comes_back_as_it_was(tmp_path: Path, codes: tuple[int, int], unit: int) -> None:
    file = nifti(
        tmp_path / "a.nii", values(), qform_code=codes[0], sform_code=codes[1], xyzt_units=unit, qoffset_y=3,
        scl_slope=2.0, scl_inter=-7.0, cal_max=300, intent_code=1007, descrip=b"from the scanner",
    )  # fmt: skip
    out, note = written(file, labels(), 3)
    one, other = nibabel.load(file).header, nibabel.load(out).header
    for key in (
        "qform_code",
        "sform_code",
        "quatern_b",
        "qoffset_y",
        "srow_x",
        "srow_y",
        "xyzt_units",
        "descrip",
    ):
        assert np.array_equal(one[key], other[key]), key
    assert np.array_equal(one.get_zooms(), other.get_zooms())
    assert (
        other.get_data_dtype() == np.uint8 and int(other["intent_code"]) == 0 and float(other["cal_max"]) == 0
    )
    assert np.array_equal(np.asarray(nibabel.load(out).dataobj), labels()) and note == ""
    assert np.array_equal(back(out, file, 3), labels())


@pytest.mark.parametrize(
    ("shape", "dims", "wanted"),
    [
        ((6, 5, 4, 2), 3, (6, 5, 4)),
        ((6, 5, 4, 1), 3, (6, 5, 4)),
        ((6, 5, 1), 2, (6, 5, 1)),
        ((6, 5), 2, (6, 5)),
        ((6, 5, 3), 2, (6, 5)),
        ((6, 5, 1, 1, 3), 2, (6, 5, 1)),
    ],
)
def test_spatial_dimensions_are_kept_and_channels_dropped(
    tmp_path: Path, shape: tuple[int, ...], dims: int, wanted: tuple[int, ...]
) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", values(shape))
    out, _ = written(file, labels(shape[:dims]), dims)
    assert nibabel.load(out).shape == wanted
    assert np.array_equal(back(out, file, dims), labels(shape[:dims]))


def test_big_endian_and_nifti_2_headers(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(values(), AFFINE, nibabel.Nifti1Header(endianness=">")), tmp_path / "a.nii"
    )
    nibabel.save(nibabel.Nifti2Image(values(), AFFINE), tmp_path / "b.nii")
    for name in ("a.nii", "b.nii"):
        out, _ = written(tmp_path / name, labels(), 3)
        assert type(nibabel.load(out)) is type(nibabel.load(tmp_path / name))
        assert np.array_equal(back(out, tmp_path / name, 3), labels())


@pytest.mark.parametrize(
    ("name", "suffix", "words"),
    [
        ("a.png", ".png", ""),
        ("a.jpg", ".png", "JPG cannot hold label values"),
        ("a.jpeg", ".png", "JPEG cannot hold label values"),
        ("a.bmp", ".png", "BMP"),
        ("a.tif", ".tif", ""),
    ],
)
@pytest.mark.parametrize("top", [2, 700])
def test_a_picture_gets_its_label_map_in_its_own_rows(
    tmp_path: Path, name: str, suffix: str, words: str, top: int
) -> None:
    Image.fromarray(values((20, 30), np.uint8)).save(tmp_path / name)
    made = written_values(labels((20, 30)), {2: top})
    out, note = written(tmp_path / name, made, 2)
    assert out.suffix == suffix and words in note and bool(note) == bool(words)
    with Image.open(out) as shown:
        assert shown.size == (30, 20) and np.array_equal(np.asarray(shown), made)
    assert np.array_equal(back(out, tmp_path / name, 2), made)


@pytest.mark.parametrize("unit", [None, "mm"])
def test_a_stack_of_pages_gets_a_stack_with_its_voxel_size(tmp_path: Path, unit: str | None) -> None:
    file = tmp_path / "a.tif"
    more: dict[str, Any] = {
        "imagej": True,
        "resolution": (2, 4),
        "metadata": {"axes": "ZYX", "spacing": 2.5, "unit": unit},
    }
    tifffile.imwrite(file, values((6, 20, 30), np.uint8), **(more if unit else {"photometric": "minisblack"}))
    out, note = written(file, labels((20, 30, 6)), 3)
    assert out.suffix == ".tif" and note == ""
    assert np.array_equal(tifffile.imread(out), np.moveaxis(labels((20, 30, 6)), -1, 0))
    spacing = read_volume(out, 3).spacing_mm
    assert spacing == (pytest.approx((0.25, 0.5, 2.5)) if unit else None)
    assert np.array_equal(back(out, file, 3), labels((20, 30, 6)))


def test_a_short_stack_is_no_colour_picture(tmp_path: Path) -> None:
    """tifffile takes three pages of 8 bits for the planes of a colour picture, if it is not told."""
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, values((3, 20, 30), np.uint8), photometric="minisblack")
    out, _ = written(file, labels((20, 30, 3)), 3)
    assert np.array_equal(back(out, file, 3), labels((20, 30, 3)))


def test_a_turned_picture_is_answered_as_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values((20, 30), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    out, _ = written(tmp_path / "a.jpg", labels((30, 20)), 2)
    with Image.open(out) as shown:
        assert shown.size == (20, 30) and shown.getexif().get(0x0112, 1) == 1
    assert np.array_equal(back(out, tmp_path / "a.jpg", 2), labels((30, 20)))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_slice_of_itk_comes_back_onto_its_image(tmp_path: Path, name: str) -> None:
    flat = sitk.GetImageFromArray(values((6, 4)))
    flat.SetSpacing((0.5, 2))
    flat.SetOrigin((7, 8))
    sitk.WriteImage(flat, str(tmp_path / name))
    out, _ = written(tmp_path / name, labels((4, 6)), 2)
    assert np.array_equal(back(out, tmp_path / name, 2), labels((4, 6)))
    assert sitk.ReadImage(str(out)).GetDimension() == 2
    sitk.WriteImage(itk_image(values((6, 4, 1))), str(tmp_path / name))
    out, _ = written(tmp_path / name, labels((6, 4)), 2)
    assert np.array_equal(back(out, tmp_path / name, 2), labels((6, 4)))
    assert sitk.ReadImage(str(out)).GetSize() == (6, 4, 1)


def test_no_place_is_invented(tmp_path: Path) -> None:
    nrrd(tmp_path / "a.nrrd", values(), *space("scanner-xyz"))
    nrrd(tmp_path / "b.nrrd", values())
    head = "NDims = 3\nDimSize = 7 9 5\nElementType = MET_UCHAR\nElementSpacing = 1 2 3\n"
    text = f"ObjectType = Image\n{head}ElementDataFile = LOCAL\n"
    (tmp_path / "c.mha").write_bytes(text.encode() + values(kind=np.uint8).tobytes(order="F"))
    PLACED["a.mgh"](tmp_path / "d.mgh")
    data = bytearray((tmp_path / "d.mgh").read_bytes())
    data[28:30] = b"\0\0"
    (tmp_path / "d.mgh").write_bytes(data)
    for name in ("a.nrrd", "b.nrrd", "c.mha", "d.mgh"):
        out, _ = written(tmp_path / name, labels(), 3)
        found = read_volume(out, 3)
        assert not found.placed and found.spacing_mm == read_volume(tmp_path / name, 3).spacing_mm
        assert np.array_equal(back(out, tmp_path / name, 3), labels())


@pytest.mark.parametrize("flat", [False, True])
def test_a_space_that_is_not_the_patient_s_is_kept_word_for_word(tmp_path: Path, flat: bool) -> None:
    lines = space("scanner-xyz")
    if flat:
        lines = ("space dimension: 2", "space directions: (1,0.5) (-0.5,1)", "space origin: (5,6)")
    shape = SHAPE[:2] if flat else SHAPE
    nrrd(tmp_path / "a.nrrd", values(shape), *lines)
    out, _ = written(tmp_path / "a.nrrd", labels(shape), len(shape))
    head = out.read_bytes().split(b"\n\n")[0].decode()
    assert all(line in head.splitlines() for line in lines)
    source, made = sitk.ReadImage(str(tmp_path / "a.nrrd")), sitk.ReadImage(str(out))
    assert (made.GetOrigin(), made.GetDirection()) == (source.GetOrigin(), source.GetDirection())


def test_nifti_where_it_is_asked_for_and_possible(tmp_path: Path) -> None:
    PLACED["a.nrrd"](tmp_path / "a.nrrd")
    out, _ = written(tmp_path / "a.nrrd", labels(), 3, "nifti")
    assert out.name == "out.nii.gz" and np.array_equal(back(out, tmp_path / "a.nrrd", 3), labels())
    Image.fromarray(values((20, 30), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png.*--format.*no place in space"):
        written(tmp_path / "a.png", labels((20, 30)), 2, "nifti")


def test_dicom_in_the_patient_gives_nifti_in_place(tmp_path: Path) -> None:
    folder = write_dicom_series(tmp_path / "scan", values(), (0.8, 0.9, 2.0))
    out, note = written(folder, labels(), 3)
    assert out.name == "out.nii.gz" and "written as NIfTI" in note and "dicom-seg" in note
    assert np.array_equal(back(out, folder, 3), labels())


@pytest.mark.parametrize("placed", [False, True])
def test_a_flat_dicom_gives_png_where_it_has_no_place(tmp_path: Path, placed: bool) -> None:
    file = tmp_path / "xray.dcm"
    volume = Volume(np.zeros((1, 20, 30), np.uint16), np.diag([0.2, 0.2, 1, 1]), placed, (), True)
    suffix, note = suffix_for(file, volume, "auto")
    assert suffix == (".nii.gz" if placed else ".png") and "written as" in note
    if placed:
        (tmp_path / "o.nii.gz").write_bytes(encode(labels((20, 30)), file, volume, suffix))
        found = nibabel.load(tmp_path / "o.nii.gz")
        assert found.shape == (20, 30, 1) and np.allclose(found.affine, volume.affine)


# ---------------------------------------------------------------- the command


def test_the_command_says_format_and_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made)
    image = blob((40, 44), 1)[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(image).save(tmp_path / "a,b.jpg", exif=exif)
    Image.fromarray(image).save(tmp_path / "c.tif")
    write_nifti(tmp_path / "d.nii", image[..., None])
    files = [str(tmp_path / n) for n in ("a,b.jpg", "c.tif", "d.nii")]
    arguments = ["--spec", spec_file(tmp_path, made), "-o", str(tmp_path / "out")]
    assert main([*arguments, *files]) == EXIT_OK
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert [Path(o["output"]).name for o in outputs] == ["a,b.png", "c.tif", "d.nii.gz"]
    assert [o["format"] for o in outputs] == [".png", ".tif", ".nii.gz"]
    assert "written as PNG" in outputs[0]["note"] and "EXIF orientation (3)" in outputs[0]["note"]
    assert "note" not in outputs[1] and "note" not in outputs[2]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a,b.png", "c.tif", "d.nii.gz"]


def test_a_format_that_an_image_cannot_have_is_refused_and_the_others_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made)
    image = blob((40, 44), 1)[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    write_nifti(tmp_path / "d.nii", image[..., None])
    files = [str(tmp_path / n) for n in ("a.png", "d.nii")]
    arguments = ["--spec", spec_file(tmp_path, made), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--format", "nifti", *files]) == EXIT_DATA
    captured = capsys.readouterr()
    assert "a.png" in captured.err and len(json.loads(captured.out)["outputs"]) == 1
    assert main([*arguments, "--format", "dicom-seg", *files]) == EXIT_DATA
    assert "is no DICOM image" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [("a/x.jpg", "b/x.png"), ("a/x.mhd", "b/x.mha"), ("a/x.nii", "b/x.nii.gz")])
def test_images_of_different_kinds_with_one_output_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pair: tuple[str, str]
) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made)
    arguments = ["--spec", spec_file(tmp_path, made), "-o", str(tmp_path / "out")]
    assert main([*arguments, *(str(tmp_path / p) for p in pair)]) == EXIT_CONFIG
    assert "would overwrite the output of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.nii.gz", "x.mha", "x.nrrd", "x.mgz"])
def test_no_image_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    made = spec(tmp_path, GREY)
    write_checkpoint(made)
    (tmp_path / name).write_bytes(b"whatever")
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        code = main(["--spec", spec_file(tmp_path, made), "-o", str(folder), str(tmp_path / name)])
        assert code == EXIT_CONFIG and "would overwrite the image itself" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == b"whatever"


def test_dicom_seg_refers_to_its_image_and_comes_back_onto_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spec(tmp_path, VOLUME)
    write_checkpoint(made)
    folder = write_dicom_series(tmp_path / "scan", values((20, 18, 16)), (0.8, 0.9, 2.0))
    arguments = ["--spec", spec_file(tmp_path, made), "-o", str(tmp_path / "out"), "--format", "dicom-seg"]
    assert main([*arguments, str(folder)]) == EXIT_OK
    (told,) = json.loads(capsys.readouterr().out)["outputs"]
    assert told["output"] == str(tmp_path / "out" / "scan.dcm") and told["format"] == "dicom-seg"
    assert any(told["voxels"].values())
    found = read_label(tmp_path / "out" / "scan.dcm", 3, read_volume(folder, 3))
    assert isinstance(found, Segmentation)
    assert {s.name: int(s.mask.sum()) for s in found.segments} == {
        n: c for n, c in told["voxels"].items() if c
    }
