"""A label on a flipped, permuted or offset grid of the same voxels is brought over exactly, or refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.grid import offset_note, onto_image, orientation
from gossipseg.learn.data.formats.volume import Volume
from gossipseg.learn.data.readers import read_label, read_volume
from tests.learn.data import dicom_files
from tests.learn.imagery import blob, write_nifti, write_png

SHAPE = (7, 9, 5)
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([0.8, 1.1, 3.0])
OBLIQUE[:3, 3] = (-80.5, 12.25, 333.0)


def image(affine: np.ndarray = OBLIQUE, shape: tuple[int, ...] = SHAPE, **more: object) -> Volume:
    return Volume(np.zeros((1, *shape), np.float32), affine, **more)  # type: ignore[arg-type]


def restored(
    array: np.ndarray, axes: tuple[int, ...], flips: tuple[int, ...], affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels stored along other axes: the array and its affine."""
    dims = len(axes)
    step = np.zeros((4, 4))  # stored index → index before
    step[3, 3] = 1
    for new, old in enumerate(axes):
        step[old, new] = -1 if new in flips else 1
        step[old, 3] = array.shape[old] - 1 if new in flips else 0
    for rest in range(dims, 3):
        step[rest, rest] = 1
    out = array.transpose(axes)
    for new in flips:
        out = np.flip(out, new)
    return out, affine @ step


def labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


STORED = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4))
]


@pytest.mark.parametrize(
    "affine", [np.eye(4), np.diag([-1.0, -1, 2, 1]), OBLIQUE], ids=["RAS", "LPS", "oblique"]
)
@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_all_48_ways_to_store_the_same_voxels(affine: np.ndarray, kind: type) -> None:
    wanted = labels().astype(kind)
    for axes, flips in STORED:
        stored, at = restored(wanted, axes, flips, affine)
        found = onto_image(np.stack([stored, stored]), at, image(affine), Path("l"), Path("i"))
        assert found.dtype == wanted.dtype
        assert np.array_equal(found[0], wanted) and np.array_equal(found[1], wanted), (axes, flips)
        assert min(found.strides) > 0  # or torch would not take it


@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE])
def test_all_8_ways_of_a_slice(affine: np.ndarray) -> None:
    wanted = labels((7, 9))
    for axes in itertools.permutations(range(2)):
        for flips in ((), (0,), (1,), (0, 1)):
            stored, at = restored(wanted, axes, flips, affine)
            at = at @ np.diag([1, 1, -2.5, 1])  # thickness and sense of the normal say nothing of a slice
            found = onto_image(stored[None], at, image(affine, (7, 9)), Path("l"), Path("i"))
            assert np.array_equal(found[0], wanted)


def test_a_slice_beside_the_image_s_plane_is_refused() -> None:
    at = OBLIQUE.copy()
    at[:3, 3] += 2 * OBLIQUE[:3, 2]
    with pytest.raises(DataError, match="same grid"):
        onto_image(np.zeros((1, 7, 9), np.uint8), at, image(OBLIQUE, (7, 9)), Path("l"), Path("i"))


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), ()), ((2, 0, 1), (0, 2)), ((1, 0, 2), (1,))])
def test_a_cut_out_is_put_back_where_it_was(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[2:5, 3:8, 1:4] = labels((3, 5, 3))
    cut = OBLIQUE.copy()
    cut[:3, 3] = (OBLIQUE @ [2, 3, 1, 1])[:3]
    stored, at = restored(wanted[2:5, 3:8, 1:4], axes, flips, cut)
    assert np.array_equal(onto_image(stored[None], at, image(), Path("l"), Path("i"))[0], wanted)


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), ()), ((2, 0, 1), (0, 2)), ((1, 0, 2), (1,))])
def test_a_label_of_the_image_s_shape_that_lies_beside_it_is_told(
    axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    beside = OBLIQUE.copy()
    beside[:3, 3] = (OBLIQUE @ [2, -1, 0, 1])[:3]
    for affine, note in ((OBLIQUE, ""), (beside, "lies 2, -1, 0 voxels beside it")):
        stored, at = restored(labels(), axes, flips, affine)
        said = offset_note(stored.shape, at, image(), Path("l"))
        assert note in " ".join(said) and bool(said) == bool(note)
    assert not offset_note((3, 5, 3), beside, image(), Path("l"))  # a cut-out says by its shape what it is


def test_a_larger_label_is_cut_where_it_is_empty_and_refused_where_it_is_not() -> None:
    wide = np.zeros((11, 12, 9), np.uint8)
    wide[2:9, 1:10, 3:8] = wanted = labels()
    at = OBLIQUE.copy()
    at[:3, 3] = (OBLIQUE @ [-2, -1, -3, 1])[:3]
    assert np.array_equal(onto_image(wide[None], at, image(), Path("l"), Path("i"))[0], wanted)
    wide[0, 0, :4] = 1
    inside = int((wanted > 0).sum())
    with pytest.raises(
        DataError, match=rf"^l: grid: 4 of its {inside + 4} labelled voxels lie outside.*\(i\)"
    ):
        onto_image(wide[None], at, image(), Path("l"), Path("i"))


def test_grids_that_do_not_meet_are_refused_even_empty() -> None:
    at = OBLIQUE.copy()
    at[:3, 3] = (OBLIQUE @ [50, 0, 0, 1])[:3]
    with pytest.raises(DataError, match="same grid"):
        onto_image(np.zeros((1, *SHAPE), np.uint8), at, image(), Path("l"), Path("i"))


@pytest.mark.parametrize("decimals", [3, 4, 6])
def test_rounded_affines_pass(decimals: int) -> None:
    stored, at = restored(labels(), (2, 1, 0), (1,), OBLIQUE)
    found = onto_image(stored[None], at.round(decimals), image(), Path("l"), Path("i"))
    assert np.array_equal(found[0], labels())
    coarse = np.diag([0.683594, 0.683594, 2.5, 1])
    wide = np.broadcast_to(np.uint8(1), (1, 512, 512, 300))
    found = onto_image(wide, coarse.round(3), image(coarse, wide.shape[1:]), Path("l"), Path("i"))
    assert found.shape == wide.shape
    with pytest.raises(DataError, match="same grid"):  # here the far rows are another one's
        onto_image(wide, coarse.round(2), image(coarse, wide.shape[1:]), Path("l"), Path("i"))
    big = OBLIQUE.astype(np.float32).astype(np.float64)
    broad = np.broadcast_to(np.uint8(1), (1, 600, 600, 900))
    assert onto_image(broad, big, image(OBLIQUE, broad.shape[1:]), Path("l"), Path("i")) is not None


@pytest.mark.parametrize(
    "changed",
    [
        np.diag([1.0, 1, 2, 1]),  # other slices
        np.diag([2.0, 2, 1, 1]),  # half the matrix
        np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),  # half a voxel
        np.array([[1, 0.05, 0, 0], [-0.05, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),  # turned by 3°
        np.array([[1, 0, 0.1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),  # sheared: a gantry's tilt
    ],
)
def test_any_other_grid_is_refused_with_both_in_the_message(changed: np.ndarray) -> None:
    with pytest.raises(DataError) as caught:
        onto_image(np.zeros((1, *SHAPE), np.uint8), OBLIQUE @ changed, image(), Path("l"), Path("im"))
    text = str(caught.value)
    assert text.count("shape (7, 9, 5)") == 2 and "0.8×1.1×3 mm" in text and text.count("origin (") == 2
    assert text.count("axes ") == 2 and "mm apart" in text and "im" in text
    assert "copy" not in text.lower() and "do not edit its header" in text


def test_without_a_place_the_shapes_must_be_equal() -> None:
    flat = Volume(np.zeros((1, 4, 5), np.uint8), None)
    array = np.ones((1, 4, 5), np.uint8)
    assert onto_image(array, None, flat, Path("l"), Path("i")) is array
    with pytest.raises(DataError, match=r"\(5, 4\).*\(4, 5\)"):
        onto_image(array.transpose(0, 2, 1), None, flat, Path("l"), Path("i"))


@pytest.mark.parametrize(("code", "flips"), [("RAS", ()), ("LPS", (0, 1)), ("RPI", (1, 2))])
def test_orientation_codes(code: str, flips: tuple[int, ...]) -> None:
    assert orientation(np.diag([*(-1.0 if i in flips else 1.0 for i in range(3)), 1.0]), 3) == code


# ---------------------------------------------------------------- labels without a place


def test_a_picture_is_no_certain_label_of_a_nifti_slice(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "i.nii.gz", np.zeros((20, 20, 1), np.float32))
    png = write_png(tmp_path / "l.png", np.zeros((20, 20), np.uint8))
    for one, other in ((file, png), (png, file)):
        with pytest.raises(DataError, match=r"cannot be laid onto its image.*rows and columns of a picture"):
            read_label(other, 2, read_volume(one, 2))


def test_a_header_without_orientation_is_compared_with_its_like_alone(tmp_path: Path) -> None:
    import nibabel

    def bare(name: str, spacing: float = 1.0) -> Path:
        made = nibabel.Nifti1Image(labels(), np.diag([spacing, spacing, spacing, 1]))
        made.header["sform_code"] = made.header["qform_code"] = 0
        nibabel.save(nibabel.Nifti1Image(labels(), None, made.header), tmp_path / name)
        return tmp_path / name

    one, other = bare("a.nii.gz"), bare("b.nii.gz")
    found = read_label(other, 3, read_volume(one, 3))
    assert isinstance(found, Volume) and not read_volume(one, 3).placed
    placed = write_nifti(tmp_path / "p.nii.gz", labels(), np.diag([-1.0, 1, 1, 1]))
    for image_file, label in ((placed, other), (one, placed)):
        with pytest.raises(DataError, match="gives no orientation"):
            read_label(label, 3, read_volume(image_file, 3))
    with pytest.raises(DataError, match=r"voxels of 2×2×2 mm.*1×1×1"):
        read_label(bare("c.nii.gz", 2.0), 3, read_volume(one, 3))


# ---------------------------------------------------------------- channels


def channels(folder: Path, affine: np.ndarray, array: np.ndarray) -> Volume:
    first = write_nifti(folder / "t1.nii.gz", labels(), np.diag([1.0, 1, 2, 1]))
    return read_volume((first, write_nifti(folder / "flair.nii.gz", array, affine)), 3)


def test_a_channel_stored_along_other_axes_is_turned(tmp_path: Path) -> None:
    stored, at = restored(labels() + 5, (1, 2, 0), (0,), np.diag([1.0, 1, 2, 1]))
    found = channels(tmp_path, at, stored)
    assert np.array_equal(found.array, np.stack([labels(), labels() + 5]))


@pytest.mark.parametrize("moved", [(1, 0, 0), (0, 0, 4), (0.5, 0, 0), (100, -40, 7)])
def test_a_channel_that_lies_elsewhere_is_refused(tmp_path: Path, moved: tuple[float, ...]) -> None:
    affine = np.diag([1.0, 1, 2, 1])
    affine[:3, 3] = moved
    with pytest.raises(
        DataError, match=r"flair\.nii\.gz.*lies elsewhere than .*t1\.nii\.gz.*mm apart.*register"
    ):
        channels(tmp_path, affine, labels())


def test_a_channel_of_other_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="voxels 1×1×5 against 1×1×2 mm"):
        channels(tmp_path, np.diag([1.0, 1, 5, 1]), labels())
    with pytest.raises(DataError, match=r"shape \(7, 9, 4\) against \(7, 9, 5\)"):
        channels(tmp_path, np.diag([1.0, 1, 2, 1]), labels((7, 9, 4)))


def test_pictures_as_channels_must_be_of_one_size(tmp_path: Path) -> None:
    one, two = (write_png(tmp_path / f"{i}.png", blob((30, 20), i)[0]) for i in range(2))
    assert read_volume((one, two), 2).array.shape == (2, 30, 20)
    other = write_png(tmp_path / "o.png", blob((20, 30), 2)[0])
    with pytest.raises(DataError, match=r"o\.png.*\(20, 30\)"):
        read_volume((one, other), 2)


@pytest.mark.parametrize("size", [{}, {"PixelSpacing": [0.2, 0.1]}])
def test_a_picture_is_a_label_of_an_x_ray(tmp_path: Path, size: dict[str, list[float]]) -> None:
    pixels = np.random.default_rng(0).integers(0, 1000, (12, 9)).astype(np.uint16)
    xray = read_volume(dicom_files.picture(tmp_path / "x.dcm", pixels, **size), 2)
    mask = read_label(write_png(tmp_path / "m.png", labels((12, 9))), 2, xray)
    assert isinstance(mask, Volume)
    assert np.array_equal(onto_image(mask.array, mask.affine, xray, tmp_path, tmp_path)[0], labels((12, 9)))
    for refused in (
        write_png(tmp_path / "t.png", labels((9, 12))),
        write_nifti(tmp_path / "n.nii.gz", labels((12, 9, 1))),
    ):
        with pytest.raises(DataError):
            read_label(refused, 2, xray)
