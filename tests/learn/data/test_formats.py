"""Each kind of file but DICOM and pictures: its values, its place, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import load_item
from gossipseg.learn.data.formats.grid import onto_image
from gossipseg.learn.data.formats.volume import Segmentation, Volume
from gossipseg.learn.data.readers import read_label, read_volume
from gossipseg.learn.params import TaskParams
from tests.learn.imagery import blob, write_nifti

SHAPE = (7, 9, 5)
AFFINE = np.array([[-0.8, 0, 0, 30], [0, 0, 1.5, -20], [0, 1.1, 0, 5], [0, 0, 0, 1]])


def values(shape: tuple[int, ...] = SHAPE, kind: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(kind)


def itk_image(array: np.ndarray, affine: np.ndarray = AFFINE, *, vector: bool = False) -> sitk.Image:
    """(i, j, k[, C]) with an affine to RAS mm."""
    axes = (2, 1, 0, 3) if vector else tuple(reversed(range(array.ndim)))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=vector)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def write_mgz(file: Path) -> None:
    nibabel.save(nibabel.freesurfer.MGHImage(values(), AFFINE), file)


def write_itk(file: Path) -> None:
    sitk.WriteImage(itk_image(values()), str(file))


def write_nii(file: Path) -> None:
    write_nifti(file, values(), AFFINE)


PLACED: dict[str, Callable[[Path], None]] = {
    "a.nii.gz": write_nii, "a.nii": write_nii, "a.mgz": write_mgz, "a.mgh": write_mgz, "a.mha": write_itk,
    "a.mhd": write_itk, "a.nrrd": write_itk, "a.nhdr": write_itk,
}  # fmt: skip


@pytest.mark.parametrize("name", PLACED)
def test_all_kinds_give_the_same_voxels_in_the_same_place(tmp_path: Path, name: str) -> None:
    PLACED[name](tmp_path / name)
    found = read_volume(tmp_path / name, 3)
    assert found.array.dtype.isnative and found.placed and not found.raster
    assert np.array_equal(found.array[0], values())
    assert found.affine is not None
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)


def test_reading_loads_neither_torch_nor_monai(tmp_path: Path) -> None:
    for name, write in PLACED.items():
        write(tmp_path / name)
    Image.fromarray(values((8, 8), np.uint8)).save(tmp_path / "a.png")
    code = (
        "import sys; from pathlib import Path; from gossipseg.learn.data.readers import read_volume\n"
        "assert not {'SimpleITK', 'tifffile', 'nibabel'} & set(sys.modules)\n"
        "for p in sorted(Path(sys.argv[1]).glob('a.[!rz]*')):\n"
        "    read_volume(p, 2 if p.suffix == '.png' else 3)\n"
        "print(sorted({'torch', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


@pytest.mark.parametrize("name", ["a.xyz", "a.npy", "a.gz", "notes"])
def test_an_unknown_kind_is_refused_with_what_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something else that is no image " * 9)
    with pytest.raises(DataError, match=r"kind that is not read.*NIfTI.*\.seg\.nrrd.*DICOM"):
        read_volume(tmp_path / name, 3)


# ---------------------------------------------------------------- NIfTI


def nifti(file: Path, array: np.ndarray, **fields: object) -> Path:
    """A NIfTI file with header fields as they are given, whether nibabel likes them or not."""
    image = nibabel.Nifti1Image(array, np.diag([1.0, 2, 3, 1]))
    image.header.set_qform(np.diag([1.0, 2, 3, 1]), 1)
    data = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    data[:348] = header.binaryblock
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("slope", [np.nan, 0.0, np.inf, 1.0])
def test_no_slope_is_no_scaling(tmp_path: Path, slope: float) -> None:
    file = nifti(tmp_path / "a.nii", values(), scl_slope=slope, scl_inter=0)
    found = read_volume(file, 3).array
    assert found.dtype == np.int16 and np.array_equal(found[0], values())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float64])
def test_slope_and_intercept_are_applied(tmp_path: Path, kind: type) -> None:
    file = nifti(tmp_path / "a.nii", values(kind=kind), scl_slope=0.5, scl_inter=-1024)
    np.testing.assert_allclose(read_volume(file, 3).array[0], values() * 0.5 - 1024, rtol=1e-7)


def test_an_intercept_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scl_inter"):
        read_volume(nifti(tmp_path / "a.nii", values(), scl_slope=2, scl_inter=np.nan), 3)


def test_big_endian_and_nifti_2(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.save(nibabel.Nifti1Image(values(), AFFINE, header), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti2Image(values(), AFFINE), tmp_path / "b.nii.gz")
    for name in ("a.nii", "b.nii.gz"):
        found = read_volume(tmp_path / name, 3)
        assert np.array_equal(found.array[0], values()) and np.allclose(found.affine, AFFINE)


@pytest.mark.parametrize(
    ("shape", "dims", "wanted"),
    [
        ((6, 5, 4, 1), 3, (1, 6, 5, 4)),
        ((6, 5, 4, 1, 1), 3, (1, 6, 5, 4)),
        ((6, 5, 4, 2), 3, (2, 6, 5, 4)),
        ((6, 5, 4, 1, 3), 3, (3, 6, 5, 4)),
        ((6, 5, 1), 2, (1, 6, 5)),
        ((6, 5, 1, 1, 3), 2, (3, 6, 5)),
        ((6, 5, 3), 2, (3, 6, 5)),
    ],
)
def test_axes_of_length_one_carry_nothing(
    tmp_path: Path, shape: tuple[int, ...], dims: int, wanted: tuple[int, ...]
) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", values(shape))
    found = read_volume(file, dims).array
    assert found.shape == wanted
    assert np.array_equal(
        found[-1].ravel(), values(shape)[..., -1].ravel() if wanted[0] > 1 else values(shape).ravel()
    )


@pytest.mark.parametrize("shape", [(6, 5, 4, 2, 3), (6, 5), (6, 5, 4, 1, 1, 2, 2)])
def test_other_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=rf"has {len(shape)} dimensions"):
        read_volume(write_nifti(tmp_path / "a.nii.gz", values(shape)), 3)


def test_rgb_voxels_are_three_channels_and_complex_ones_refused(tmp_path: Path) -> None:
    rgb = values((*SHAPE, 3), np.uint8)
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb.view(kind)[..., 0], np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz", 3).array, np.moveaxis(rgb, -1, 0))
    with pytest.raises(DataError, match="complex"):
        read_volume(write_nifti(tmp_path / "c.nii.gz", values().astype(np.complex64)), 3)


def test_units_are_turned_into_mm_or_refused(tmp_path: Path) -> None:
    small = read_volume(nifti(tmp_path / "a.nii", values(), xyzt_units=3), 3)
    np.testing.assert_allclose(small.spacing_mm or (), (1e-3, 2e-3, 3e-3))
    assert "micron" in small.notes[0]
    for unit in (1, 5):
        with pytest.raises(DataError, match="xyzt_units"):
            read_volume(nifti(tmp_path / "b.nii", values(), xyzt_units=unit), 3)
    assert read_volume(nifti(tmp_path / "c.nii", values(), xyzt_units=0), 3).spacing_mm == (1, 2, 3)


def test_a_qform_that_disagrees_is_told_and_the_sform_used(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii", values(), qoffset_x=22)
    found = read_volume(file, 3)
    assert found.affine is not None and found.affine[0, 3] == 0
    assert "22 mm apart; the sform is used" in found.notes[0]
    assert read_volume(nifti(tmp_path / "b.nii", values()), 3).notes == ()


def test_numbers_too_large_for_a_network_are_refused(tmp_path: Path) -> None:
    array = values(kind=np.float64)
    array[1, 2, 3] = 1e39
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii: holds numbers beyond 3e38"):
        load_item(Case("c", tmp_path / "a.nii"), TaskParams("t", 1, {0: "none", 1: "a"}, spatial_dims=3))


def test_a_rounded_quaternion_is_no_damage(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii", values(), sform_code=0, quatern_b=0, quatern_c=0, quatern_d=1.000001)
    found = read_volume(file, 3)
    assert found.affine is not None and found.placed
    np.testing.assert_allclose(found.affine, np.diag([-1.0, -2, 3, 1]), atol=1e-5)


def test_a_damaged_qform_beside_an_sform_is_told(tmp_path: Path) -> None:
    found = read_volume(nifti(tmp_path / "a.nii", values(), quatern_b=2), 3)
    assert found.affine is not None and np.array_equal(found.affine, np.diag([1.0, 2, 3, 1]))
    assert "qform is damaged" in found.notes[0] and "the sform is used" in found.notes[0]
    with pytest.raises(DataError, match=r"b\.nii: qform: its qform is damaged"):
        read_volume(nifti(tmp_path / "b.nii", values(), sform_code=0, quatern_b=2), 3)


def test_the_qform_places_where_there_is_no_sform(tmp_path: Path) -> None:
    found = read_volume(nifti(tmp_path / "a.nii", values(), sform_code=0, qoffset_x=22), 3)
    assert found.affine is not None and found.affine[0, 3] == 22 and found.placed
    bare = read_volume(nifti(tmp_path / "b.nii", values(), sform_code=0, qform_code=0), 3)
    assert not bare.placed and bare.spacing_mm == (1, 2, 3)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"srow_x": (np.nan, 0, 0, 0)}, "sform"),
        ({"srow_x": (0, 0, 0, 0)}, "sform"),
        ({"srow_y": (1, 0, 0, 0)}, "sform"),
        ({"sform_code": 0, "pixdim": [1, np.inf, 1, 1, 1, 1, 1, 1]}, "qform"),
        ({"datatype": 77}, "datatype"),
        ({"dim": [9, 7, 9, 5, 1, 1, 1, 1]}, "dim"),
        ({"dim": [3, 7, -9, 5, 1, 1, 1, 1]}, "dim"),
        ({"magic": b"ni1"}, "pair of files"),
        ({"magic": b""}, "Analyze"),
    ],
)
def test_a_damaged_header_is_refused_by_name(
    tmp_path: Path, fields: dict[str, object], key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=rf"a\.nii.*{key}"):
        read_volume(nifti(tmp_path / "a.nii", values(), **fields), 3)
    assert capfd.readouterr() == ("", "")


def test_an_mgh_without_a_place_has_none(tmp_path: Path) -> None:
    write_mgz(tmp_path / "a.mgh")
    data = bytearray((tmp_path / "a.mgh").read_bytes())
    data[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(data)
    found = read_volume(tmp_path / "a.mgh", 3)
    assert not found.placed and np.array_equal(found.array[0], values())


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_a_case_is_read_whatever_way_its_label_is_stored(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    """Down to the tensors, and with a task that has a grid of its own: the label is turned before."""
    image, label = blob((20, 24, 18), 3)
    affine = np.diag([-1.0, 1, 2, 1])
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, old in enumerate(axes):
        step[old, new] = signs[new]
        step[old, 3] = 0 if signs[new] > 0 else label.shape[old] - 1
    stored = label.transpose(axes)[tuple(slice(None, None, s) for s in signs)]
    files = [write_nifti(tmp_path / "i.nii.gz", image.astype(np.float32), affine)]
    files += [
        write_nifti(tmp_path / "a.nii.gz", label, affine),
        write_nifti(tmp_path / "b.nii.gz", stored, affine @ step),
    ]
    task = TaskParams("t", 1, {0: "background", 1: "x"}, spatial_dims=3, patch_size=(16, 16, 16))
    for made in (task, dataclasses.replace(task, orientation="RAS", spacing_mm=(1.5, 1.5, 1.5))):
        one, other = (load_item(Case("c", files[0], file), made) for file in files[1:])
        assert one.label is not None and other.label is not None and torch.equal(one.label, other.label)
        assert one.truth is not None and other.truth is not None and torch.equal(one.truth, other.truth)


def test_an_image_without_orientation_is_refused_where_the_task_has_one(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii", values(kind=np.float32), sform_code=0, qform_code=0)
    task = TaskParams("t", 1, {0: "background", 1: "x"}, spatial_dims=3, patch_size=(16, 16, 16))
    assert load_item(Case("c", file), task).image.shape == (1, *SHAPE)
    with pytest.raises(DataError, match=r"a\.nii: task\.orientation.*does not say how it lies"):
        load_item(Case("c", file), dataclasses.replace(task, orientation="RAS"))


# ---------------------------------------------------------------- MetaImage and NRRD


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_vectors_are_channels_and_slices_are_two_dimensional(tmp_path: Path, name: str) -> None:
    vectors = values((*SHAPE, 2))
    sitk.WriteImage(itk_image(vectors, vector=True), str(tmp_path / name))
    assert np.array_equal(read_volume(tmp_path / name, 3).array, np.moveaxis(vectors, -1, 0))
    flat = sitk.GetImageFromArray(values((6, 4)))
    flat.SetSpacing((0.5, 2))
    sitk.WriteImage(flat, str(tmp_path / name))
    found = read_volume(tmp_path / name, 2)
    assert np.array_equal(found.array[0], values((6, 4)).T) and found.spacing_mm == (0.5, 2)
    sitk.WriteImage(itk_image(values((6, 4, 1))), str(tmp_path / name))
    assert read_volume(tmp_path / name, 2).shape == (6, 4)


@pytest.mark.parametrize(
    ("image", "label"), [("a.nii.gz", "a.mha"), ("a.nrrd", "a.nii.gz"), ("a.mgz", "a.nrrd")]
)
def test_a_label_of_another_kind_lies_where_its_image_does(tmp_path: Path, image: str, label: str) -> None:
    for name in (image, label):
        PLACED[name](tmp_path / name)
    volume = read_volume(tmp_path / image, 3)
    mask = read_label(tmp_path / label, 3, volume)
    assert isinstance(mask, Volume)
    found = onto_image(mask.array, mask.affine, volume, tmp_path / label, tmp_path / image)
    assert np.array_equal(found, volume.array)


def nrrd(file: Path, array: np.ndarray, *lines: str) -> Path:
    """`array`: axes in the order of the file, fastest first."""
    head = [
        "NRRD0005",
        "type: uint8",
        f"dimension: {array.ndim}",
        "sizes: " + " ".join(map(str, array.shape)),
    ]
    text = "\n".join([*head, "encoding: raw", *lines]) + "\n\n"
    file.write_bytes(text.encode() + array.astype(np.uint8).tobytes(order="F"))
    return file


def space(name: str) -> tuple[str, ...]:
    return (f"space: {name}", "space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (5,6,7)")


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("LPS", (-1, -1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_nrrd_spaces_are_turned_into_ras(tmp_path: Path, name: str, sign: tuple[int, ...]) -> None:
    found = read_volume(nrrd(tmp_path / "a.nrrd", values(), *space(name)), 3)
    wanted = np.diag([*sign, 1.0]) @ np.array([[1, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    assert found.placed and found.affine is not None
    np.testing.assert_allclose(found.affine, wanted)


def test_nrrd_without_a_space_of_the_patient_has_no_place(tmp_path: Path) -> None:
    found = read_volume(nrrd(tmp_path / "a.nrrd", values(), *space("scanner-xyz")), 3)
    assert not found.placed and "scanner-xyz" in found.notes[0]
    found = read_volume(nrrd(tmp_path / "b.nrrd", values(), "spacings: 1 2 3"), 3)
    assert not found.placed and found.spacing_mm == (1, 2, 3)
    assert read_volume(nrrd(tmp_path / "c.nrrd", values()), 3).affine is None


def test_nrrd_units(tmp_path: Path) -> None:
    lines = (*space("left-posterior-superior"), 'space units: "cm" "cm" "cm"')
    np.testing.assert_allclose(
        read_volume(nrrd(tmp_path / "a.nrrd", values(), *lines), 3).spacing_mm, (10, 20, 30)
    )
    lines = (*space("left-posterior-superior"), 'space units: "ell" "ell" "ell"')
    with pytest.raises(DataError, match="space units"):
        read_volume(nrrd(tmp_path / "a.nrrd", values(), *lines), 3)


@pytest.mark.parametrize(
    "line", ["encoding: bzip2", "type: block", "data file: LIST", "data file: s%03d.raw 1 9 1"]
)
def test_rare_kinds_of_nrrd_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"a\.nrrd"):
        read_volume(nrrd(tmp_path / "a.nrrd", values(), line), 3)


def test_a_metaimage_without_a_place(tmp_path: Path) -> None:
    head = "ObjectType = Image\nNDims = 3\nDimSize = 7 9 5\nElementType = MET_UCHAR\n"
    for extra, spacing in (("", None), ("ElementSpacing = 1 2 3\n", (1, 2, 3))):
        text = head + extra + "ElementDataFile = LOCAL\n"
        (tmp_path / "a.mha").write_bytes(text.encode() + values(kind=np.uint8).tobytes(order="F"))
        found = read_volume(tmp_path / "a.mha", 3)
        assert not found.placed and found.spacing_mm == spacing
        assert np.array_equal(found.array[0], values())


@pytest.mark.parametrize(
    "head",
    [
        "NDims = 3\nElementSpacing = 1 1 1\nDimSize = 7 9\nElementType = MET_UCHAR\n",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nNDims = 3\nDimSize = 7 9 5\nElementType = MET_UCHAR\n",
    ],
)
def test_a_header_that_itk_does_not_like_is_refused_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], head: str
) -> None:
    (tmp_path / "a.mha").write_bytes(
        f"ObjectType = Image\n{head}ElementDataFile = LOCAL\n".encode() + bytes(315)
    )
    with pytest.raises(DataError, match=r"a\.mha"):
        read_volume(tmp_path / "a.mha", 3)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- 3D Slicer's segmentations


def test_segments_of_slicer_keep_their_names_and_layers(tmp_path: Path) -> None:
    layers = np.zeros((2, 4, 5, 3), np.uint8)
    layers[0, 0], layers[0, 1], layers[1, :2] = 1, 5, 1
    lines = ["kinds: list domain domain domain", "space: left-posterior-superior", "space origin: (0,0,0)"]
    lines += ["space directions: none (1,0,0) (0,1,0) (0,0,1)"]
    for i, (name, value, layer) in enumerate([("liver", 1, 0), ("tumour: left", 5, 0), ("liver, all", 1, 1)]):
        lines += [f"Segment{i}_Name:={name}", f"Segment{i}_LabelValue:={value}", f"Segment{i}_Layer:={layer}"]
    file = nrrd(tmp_path / "a.seg.nrrd", layers, *lines)
    image = Volume(np.zeros((1, 4, 5, 3)), np.diag([-1.0, -1, 1, 1]))
    found = read_label(file, 3, image)
    assert isinstance(found, Segmentation)
    assert [(s.number, s.name, int(s.mask.sum())) for s in found.segments] == [
        (1, "liver", 15),
        (5, "tumour: left", 15),
        (1, "liver, all", 30),
    ]
    assert found.shape == (4, 5, 3) and not found.numbers_are_arbitrary


def test_a_cropped_segmentation_of_slicer_comes_back_onto_its_image(tmp_path: Path) -> None:
    crop = np.ones((2, 3, 2), np.uint8)
    lines = [
        "space: left-posterior-superior",
        "space directions: (1,0,0) (0,1,0) (0,0,1)",
        "space origin: (2,1,1)",
    ]
    lines += ["Segment0_Name:=tumour", "Segment0_LabelValue:=1", "Segment0_Layer:=0"]
    image = Volume(np.zeros((1, 6, 6, 5)), np.diag([-1.0, -1, 1, 1]))
    found = read_label(nrrd(tmp_path / "a.seg.nrrd", crop, *lines), 3, image)
    assert isinstance(found, Segmentation)
    mask = onto_image(found.segments[0].mask[None], found.affine, image, tmp_path, tmp_path)[0]
    wanted = np.zeros((6, 6, 5), bool)
    wanted[2:4, 1:4, 1:3] = True
    assert np.array_equal(mask, wanted)


def test_a_segmentation_without_a_place_is_laid_onto_no_placed_image(tmp_path: Path) -> None:
    lines = ["spacings: 1 1 1", "Segment0_Name:=tumour", "Segment0_LabelValue:=1", "Segment0_Layer:=0"]
    file = nrrd(tmp_path / "a.seg.nrrd", np.ones(SHAPE), *lines)
    placed = Volume(np.zeros((1, *SHAPE)), np.diag([-1.0, -1, 1, 1]))
    with pytest.raises(DataError, match="gives no orientation"):
        read_label(file, 3, placed)
    nrrd(tmp_path / "a.nrrd", values(), "spacings: 1 1 1")
    assert isinstance(read_label(file, 3, read_volume(tmp_path / "a.nrrd", 3)), Segmentation)
    with pytest.raises(DataError, match="picture"):
        read_label(file, 3, Volume(np.zeros((1, *SHAPE)), np.eye(4), False, (), True))


def test_old_segmentations_have_one_layer_each(tmp_path: Path) -> None:
    layers = np.zeros((2, 4, 5, 3), np.uint8)
    layers[1, 0] = 1
    lines = ["kinds: list domain domain domain", "space: left-posterior-superior", "space origin: (0,0,0)"]
    lines += ["space directions: none (1,0,0) (0,1,0) (0,0,1)", "Segment0_Name:=a", "Segment1_Name:=b"]
    found = read_label(
        nrrd(tmp_path / "a.seg.nrrd", layers, *lines), 3, Volume(np.zeros((1, 4, 5, 3)), np.eye(4))
    )
    assert isinstance(found, Segmentation)
    assert [(s.name, int(s.mask.sum())) for s in found.segments] == [("a", 0), ("b", 15)]
    assert found.numbers_are_arbitrary
    file = nrrd(tmp_path / "b.seg.nrrd", layers, *lines, "Segment2_Name:=c", "Segment2_Layer:=7")
    with pytest.raises(DataError, match=r"Segment2.*does not hold"):
        read_label(file, 3, Volume(np.zeros((1, 4, 5, 3)), np.eye(4)))


# ---------------------------------------------------------------- TIFF


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32, np.int32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_one_page_is_a_picture_and_a_stack_a_volume(tmp_path: Path, kind: type, order: str) -> None:
    pages = values((6, 20, 30), kind)
    for name, more in (("a.tif", {}), ("b.tiff", {"metadata": None}), ("c.tif", {"compression": "zlib"})):
        tifffile.imwrite(tmp_path / name, pages, photometric="minisblack", byteorder=order, **more)
        found = read_volume(tmp_path / name, 3)
        assert np.array_equal(found.array[0], np.moveaxis(pages, 0, -1)) and found.array.dtype == kind
        assert found.raster and not found.placed and found.affine is None
        with pytest.raises(DataError, match="3 dimensions, the task has 2"):
            read_volume(tmp_path / name, 2)
    tifffile.imwrite(tmp_path / "d.tif", pages[0], byteorder=order)
    assert np.array_equal(read_volume(tmp_path / "d.tif", 2).array[0], pages[0])
    with pytest.raises(DataError, match="2 dimensions, the task has 3"):
        read_volume(tmp_path / "d.tif", 3)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_a_tiff_are_channels(tmp_path: Path, planar: str) -> None:
    rgb = values((20, 30, 3), np.uint16)
    stored = rgb if planar == "contig" else np.moveaxis(rgb, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    assert np.array_equal(read_volume(tmp_path / "a.tif", 2).array, np.moveaxis(rgb, -1, 0))


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "group4", "jpeg"])
def test_compressions_of_a_stack(tmp_path: Path, compression: str) -> None:
    pages = [(values((20, 30), np.uint8) > 10 * i).astype(np.uint8) * 255 for i in range(4)]
    bits = compression == "group4"
    pictures = [Image.fromarray(p).convert("1" if bits else "L") for p in pages]
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:], compression=compression)
    found = read_volume(tmp_path / "a.tif", 3).array[0]
    wanted = np.stack(pages, -1) // (255 if bits else 1)
    assert found.shape == (20, 30, 4)
    # JPEG is lossy: half of the range tells whether pages and pixels are where they belong.
    assert np.array_equal(found, wanted) or (
        compression == "jpeg" and ((found > 127) == (wanted > 127)).mean() > 0.97
    )


def test_a_compression_without_decoder_is_named(tmp_path: Path) -> None:
    Image.fromarray(values((20, 30), np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.pages[0].tags["Compression"].valueoffset
    data[at : at + 2] = (34887).to_bytes(2, "little")  # LERC
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match=r"LERC.*pip install imagecodecs"):
        read_volume(tmp_path / "a.tif", 2)


def test_a_damaged_stream_is_no_missing_decoder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(values((20, 30), np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.pages[0].dataoffsets[0]
    data[at + 10 : at + 40] = b"\xff" * 30
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tif.*LZW stream is damaged.*Copy it again"):
        read_volume(tmp_path / "a.tif", 2)
    assert capfd.readouterr() == ("", "")


def test_the_voxel_size_is_taken_where_it_has_a_unit(tmp_path: Path) -> None:
    pages = values((6, 20, 30), np.uint8)
    said = {"axes": "ZYX", "spacing": 2.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "j.tif", pages, imagej=True, resolution=(2, 4), metadata=said)
    sizes = {f"PhysicalSize{a}": s for a, s in zip("YXZ", (0.25, 0.5, 2.5), strict=True)}
    tifffile.imwrite(
        tmp_path / "o.ome.tif", pages, photometric="minisblack", metadata={"axes": "ZYX"} | sizes
    )
    for name in ("j.tif", "o.ome.tif"):
        found = read_volume(tmp_path / name, 3)
        np.testing.assert_allclose(found.spacing_mm, (0.25e-3, 0.5e-3, 2.5e-3))
        assert not found.placed and found.raster
    for unit, wanted in (("centimeter", (0.1, 0.2)), ("inch", None)):
        tifffile.imwrite(tmp_path / "r.tif", pages[0], resolution=(50, 100), resolutionunit=unit)
        spacing = read_volume(tmp_path / "r.tif", 2).spacing_mm
        assert spacing is None if wanted is None else spacing == pytest.approx(wanted)


def test_channels_of_a_hyperstack(tmp_path: Path) -> None:
    pages = values((6, 2, 20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pages, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(read_volume(tmp_path / "a.tif", 3).array, pages.transpose(1, 2, 3, 0))
    tifffile.imwrite(tmp_path / "t.tif", pages[:, 0], imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match="axes TYX"):
        read_volume(tmp_path / "t.tif", 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_as_viewers_show_it(
    tmp_path: Path, orientation: int, compression: str | None
) -> None:
    grey = values((20, 30), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
    first = {1: grey, 2: grey[:, ::-1], 3: grey[::-1, ::-1], 4: grey[::-1], 5: grey.T}
    wanted = {**first, 6: grey[::-1].T, 7: grey[::-1, ::-1].T, 8: grey[:, ::-1].T}[orientation]
    found = read_volume(tmp_path / "a.tif", 2)
    assert np.array_equal(found.array[0], wanted)
    assert any("EXIF orientation" in n for n in found.notes) == (orientation != 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_pixel_is_turned_with_the_picture(tmp_path: Path, orientation: int) -> None:
    tags = {274: orientation, 282: 100.0, 283: 50.0, 296: 3}
    Image.fromarray(values((20, 30), np.uint8)).save(tmp_path / "a.tif", tiffinfo=tags)
    found = read_volume(tmp_path / "a.tif", 2)
    wanted = {20: 0.2, 30: 0.1}  # the stored rows are the sparse ones
    assert found.spacing_mm == pytest.approx([wanted[n] for n in found.shape])


@pytest.mark.parametrize("unit", ["µm", "μm", "um", "Micron", "micrometre"])
def test_a_micrometre_has_many_names(tmp_path: Path, unit: str) -> None:
    sizes = {f"PhysicalSize{a}": 0.5 for a in "YX"} | {f"PhysicalSize{a}Unit": unit for a in "YX"}
    file = tmp_path / "a.ome.tif"
    tifffile.imwrite(file, values((20, 30), np.uint8), metadata={"axes": "YX"} | sizes)
    assert read_volume(file, 2).spacing_mm == pytest.approx((0.5e-3, 0.5e-3))


def test_zero_as_white_is_read_as_it_is_shown(tmp_path: Path) -> None:
    grey = values((20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    assert np.array_equal(read_volume(tmp_path / "a.tif", 2).array[0], 255 - grey)
    with Image.open(tmp_path / "a.tif") as shown:
        assert np.array_equal(np.asarray(shown), 255 - grey)
    tifffile.imwrite(tmp_path / "f.tif", grey.astype(np.float32), photometric="miniswhite")
    with pytest.raises(DataError, match="0 is white"):
        read_volume(tmp_path / "f.tif", 2)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_palette_of_a_tiff(tmp_path: Path, compression: str | None) -> None:
    indices = values((20, 30), np.uint8) % 3
    colours = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)])
    picture = Image.new("P", (30, 20))
    picture.putpalette(colours.ravel().tolist())
    picture.putdata(indices.ravel().tolist())
    picture.save(tmp_path / "a.tif", compression=compression)
    found = read_volume(tmp_path / "a.tif", 2)
    assert np.array_equal(found.array, np.moveaxis(colours[indices], -1, 0))
    mask = read_label(tmp_path / "a.tif", 2, found)
    assert isinstance(mask, Volume) and np.array_equal(mask.array[0], indices)


def test_several_images_in_a_tiff_are_refused_and_a_pyramid_is_not(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values((20, 30), np.uint8))
        file.write(values((7, 9), np.uint8))
    with pytest.raises(DataError, match="2 images of different kinds"):
        read_volume(tmp_path / "a.tif", 2)
    big = values((64, 48), np.uint8)
    with tifffile.TiffWriter(tmp_path / "p.tif") as file:
        file.write(big, subifds=1)
        file.write(big[::2, ::2], subfiletype=1)
    found = read_volume(tmp_path / "p.tif", 2)
    assert np.array_equal(found.array[0], big) and "pyramid of 2 levels" in found.notes[0]


def test_cmyk_and_alpha_of_a_tiff(tmp_path: Path) -> None:
    flat = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "c.tif")
    assert np.array_equal(read_volume(tmp_path / "c.tif", 2).array, np.moveaxis(flat, -1, 0))
    Image.fromarray(np.dstack([flat, np.full((20, 30), 255, np.uint8)])).save(tmp_path / "a.tif")
    assert read_volume(tmp_path / "a.tif", 2).array.shape[0] == 3


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_text(json.dumps({"no": "image"}) * 5)
    (tmp_path / "a.mha").write_text("DimSize = x\n" * 5)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(40))
    (tmp_path / "a.mgz").write_bytes(bytes(400))
    for name in ("a.nrrd", "a.mha", "a.tif", "a.mgz"):
        with pytest.raises(DataError) as caught:
            read_volume(tmp_path / name, 3)
        assert name in str(caught.value) and "\n" not in str(caught.value)
