"""DICOM-SEG and RTSTRUCT on the image's grid: the same voxels exactly, or a refusal with the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline
from skimage.measure import find_contours

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.contours import fill
from gossipseg.learn.data.formats.dicom.image import read_dicom
from gossipseg.learn.data.formats.dicom.labels import is_segmentation, read_segmentation
from gossipseg.learn.data.formats.volume import Volume
from tests.learn.data import dicom_files as made

RNG = np.random.default_rng(3)
SHAPE = (7, 5, 6)
"""(column, row, slice); 35 bits a frame do not end at a byte."""
LABEL = (RNG.random(SHAPE) < 0.3) & (np.arange(6) % 3 > 0)
OTHER = (RNG.random(SHAPE) < 0.3) & (np.arange(6) > 3)
SPACING, STEP, ORIGIN = (1.5, 0.5), 2.5, (30.0, -20.0, 10.0)


def image_of(orientation: np.ndarray = made.AXIAL, shape: tuple[int, ...] = SHAPE) -> Volume:
    return Volume(np.zeros((1, *shape), np.int16), made.affine_of(orientation, SPACING, STEP, ORIGIN))


def at(k: int, orientation: np.ndarray = made.AXIAL) -> np.ndarray:
    """Position of slice k."""
    return np.array(ORIGIN) + made.normal(orientation) * STEP * k


def frames_of(masks: dict[int, np.ndarray], orientation: np.ndarray = made.AXIAL) -> list[made.Frame]:
    """The frames that are not empty, in a random order."""
    found: list[made.Frame] = [
        (n, mask[:, :, k].T, at(k, orientation))
        for n, mask in masks.items()
        for k in range(mask.shape[2])
        if mask[:, :, k].any()
    ]
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


# ------------------------------------------------------------------ DICOM-SEG
@pytest.mark.parametrize("orientation", [made.AXIAL, made.SAGITTAL, made.OBLIQUE])
def test_sparse_frames_of_several_segments_in_any_order(tmp_path: Path, orientation: np.ndarray) -> None:
    frames = frames_of({2: LABEL, 5: OTHER}, orientation)
    path = made.write_seg(tmp_path / "s", frames, {5: "tumour", 2: "liver"}, orientation=orientation)
    assert is_segmentation(path)
    read = read_segmentation(path, image_of(orientation))
    assert [(s.number, s.name) for s in read.segments] == [(2, "liver"), (5, "tumour")]
    assert np.array_equal(read.segments[0].mask, LABEL) and np.array_equal(read.segments[1].mask, OTHER)
    assert (LABEL & OTHER).any() and read.shape == SHAPE and not read.notes


def test_a_segment_without_frames_is_empty(tmp_path: Path) -> None:
    path = made.write_seg(tmp_path / "s", frames_of({1: LABEL}), {1: "a", 2: "b"})
    assert not read_segmentation(path, image_of()).segments[1].mask.any()


@pytest.mark.parametrize(
    ("turn", "orientation"),
    [
        (lambda f: f[:, ::-1], np.array([[-1.0, 0, 0], [0, 1, 0]])),
        (lambda f: f[::-1], np.array([[1.0, 0, 0], [0, -1, 0]])),
        (lambda f: f.T, np.array([[0.0, 1, 0], [1, 0, 0]])),
        (lambda f: f[::-1, ::-1].T, np.array([[0.0, -1, 0], [-1, 0, 0]])),
    ],
)
def test_flipped_and_permuted_frames_are_the_same_voxels(
    tmp_path: Path, turn: Any, orientation: np.ndarray
) -> None:
    spacing = SPACING if orientation[0, 0] else SPACING[::-1]
    frames: list[made.Frame] = []
    for _, pixels, position in frames_of({1: LABEL}):
        corner = np.array(position)
        for axis, (extent, pitch) in enumerate(((SHAPE[0], SPACING[1]), (SHAPE[1], SPACING[0]))):
            corner[axis] += (extent - 1) * pitch * bool((orientation[:, axis] < 0).any())
        frames.append((1, turn(pixels), corner))
    path = made.write_seg(tmp_path / "s", frames, {1: "a"}, orientation=orientation, spacing=spacing)
    assert np.array_equal(read_segmentation(path, image_of()).segments[0].mask, LABEL)


def test_frames_across_the_slices_of_the_image(tmp_path: Path) -> None:
    """Drawn on sagittal frames, of an image with axial slices."""
    frames: list[made.Frame] = [
        (1, LABEL[i].T, np.add(ORIGIN, (i * SPACING[1], 0, 0))) for i in range(SHAPE[0])
    ]
    upright = np.array([[0.0, 1, 0], [0, 0, 1]])
    spacing = (STEP, SPACING[0])
    path = made.write_seg(tmp_path / "s", frames, {1: "a"}, orientation=upright, spacing=spacing)
    assert np.array_equal(read_segmentation(path, image_of()).segments[0].mask, LABEL)


def test_a_part_of_the_image_is_put_in_its_place(tmp_path: Path) -> None:
    position = at(2) + np.array([2 * 0.5, 1 * 1.5, 0])
    path = made.write_seg(tmp_path / "s", [(1, np.ones((3, 2)), position)], {1: "a"})
    expected = np.zeros(SHAPE, bool)
    expected[2:4, 1:4, 2] = True
    assert np.array_equal(read_segmentation(path, image_of()).segments[0].mask, expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"position": (0, 0, 1.0)}, r"0\.40 voxels.*5×7 pixels of 1\.5×0\.5 mm.*7×5×6 voxels of 0\.5×1\.5"),
        ({"position": (0.2, 0, 0)}, r"up to 0\.40 voxels.*index \(0\.40, 0\.00, 2\.00\)"),
        ({"position": (0, 0, 40)}, r"35 voxels of its segments lie outside"),
        ({"spacing": (1.5, 0.6)}, r"does not lie on the image's voxels"),
        ({"orientation": made.OBLIQUE}, r"does not lie on the image's voxels"),
    ],
)  # fmt: skip
def test_other_grids_are_refused_with_both(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    position = at(2) + change.pop("position", (0, 0, 0))
    path = made.write_seg(tmp_path / "s", [(1, np.ones((5, 7)), position)], {1: "a"}, **change)
    with pytest.raises(DataError, match=says):
        read_segmentation(path, image_of())


def test_fractions_are_cut_at_half_and_said_so(tmp_path: Path) -> None:
    pixels = np.arange(35).reshape(5, 7) * 7
    path = made.write_seg(
        tmp_path / "s", [(1, pixels, at(0))], {1: "a"}, kind="FRACTIONAL", MaximumFractionalValue=200
    )
    read = read_segmentation(path, image_of())
    assert np.array_equal(read.segments[0].mask[:, :, 0].T, pixels > 100) and "half" in read.notes[0]


def test_labelmaps_hold_all_segments_in_one_frame(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 3, (5, 7))
    path = made.write_seg(
        tmp_path / "s", [(0, pixels, at(3))], {0: "bg", 1: "a", 2: "b", 3: "c"}, kind="LABELMAP"
    )
    assert is_segmentation(path)
    read = read_segmentation(path, image_of()).segments
    assert [s.number for s in read] == [1, 2, 3]
    for segment in read:
        assert np.array_equal(segment.mask[:, :, 3].T, pixels == segment.number)
    broken = made.write_seg(tmp_path / "t", [(0, pixels, at(3))], {1: "a"}, kind="LABELMAP")
    with pytest.raises(DataError, match="the value 2, which is no segment's"):
        read_segmentation(broken, image_of())


@pytest.mark.parametrize(
    ("frames", "names", "says"),
    [
        ([(1, LABEL[:, :, 1].T, at(1)), (1, LABEL[:, :, 2].T, at(1))], {1: "a"}, "frame 1 and .* 2 show"),
        ([(9, LABEL[:, :, 1].T, at(1))], {1: "a"}, r"ReferencedSegmentNumber .*segment 9; there are 1"),
    ],
)  # fmt: skip
def test_frames_that_contradict_are_refused(tmp_path: Path, frames: Any, names: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_segmentation(made.write_seg(tmp_path / "s", frames, names), image_of())


def test_a_torn_segmentation_is_named(tmp_path: Path) -> None:
    path = made.write_seg(tmp_path / "s", frames_of({1: LABEL}), {1: "a"})
    whole = path.read_bytes()
    for share in (0.2, 0.6, 0.9, 0.995):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=str(path)):
            read_segmentation(path, image_of())


def test_a_placed_slice_of_a_2d_task_takes_the_frame_of_its_plane(tmp_path: Path) -> None:
    made.write_series(tmp_path / "i", np.zeros((7, 5, 1), np.int16), orientation=made.OBLIQUE)
    image = read_dicom(tmp_path / "i/IM000.dcm", 2)
    pixels = LABEL[:, :, 1].T
    path = made.write_seg(
        tmp_path / "s", [(1, pixels, at(0, made.OBLIQUE))], {1: "a"}, orientation=made.OBLIQUE
    )
    assert np.array_equal(read_segmentation(path, image).segments[0].mask, pixels)
    off = made.write_seg(
        tmp_path / "t", [(1, pixels, at(1, made.OBLIQUE))], {1: "a"}, orientation=made.OBLIQUE
    )
    with pytest.raises(DataError, match=r"beside them|outside the image"):
        read_segmentation(off, image)


def test_a_picture_without_a_position_takes_frames_without_one(tmp_path: Path) -> None:
    image = read_dicom(made.picture(tmp_path / "x", np.zeros((5, 7), np.uint8)), 2)
    pixels = LABEL[:, :, 1].T
    path = made.write_seg(tmp_path / "s", [(2, pixels, None)], {1: "a", 2: "b"})
    assert np.array_equal(read_segmentation(path, image).segments[1].mask, pixels)
    with pytest.raises(DataError, match=r"\(5×7\) have no position, the image \(7×5×6\)"):
        read_segmentation(path, image_of())
    placed = made.write_seg(tmp_path / "t", [(1, pixels, at(0))], {1: "a"})
    with pytest.raises(DataError, match="gives positions in the patient, and the image has none"):
        read_segmentation(placed, image)
    twice = made.write_seg(tmp_path / "u", [(1, pixels, None), (1, pixels, None)], {1: "a"})
    with pytest.raises(DataError, match="segment 1 has several frames"):
        read_segmentation(twice, image)


def test_a_folder_with_one_segmentation_is_one(tmp_path: Path) -> None:
    made.write_seg(tmp_path / "s/a", frames_of({1: LABEL}), {1: "a"})
    assert is_segmentation(tmp_path / "s")
    assert np.array_equal(read_segmentation(tmp_path / "s", image_of()).segments[0].mask, LABEL)
    made.write_seg(tmp_path / "s/b", frames_of({1: LABEL}), {1: "a"})
    with pytest.raises(DataError, match=r"holds 2 DICOM files \(a, b\)"):
        read_segmentation(tmp_path / "s", image_of())
    made.write_series(tmp_path / "s/i", np.zeros(SHAPE, np.int16))
    assert not is_segmentation(tmp_path / "s") and not is_segmentation(tmp_path / "s/i/IM000.dcm")
    assert not is_segmentation(tmp_path / "nowhere")


# ------------------------------------------------------------------ contours
def inside(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 2)
    return Outline(np.vstack([polygon, polygon[:1]])).contains_points(grid).reshape(shape)


@pytest.mark.parametrize("seed", range(12))
def test_polygons_are_filled_as_another_implementation_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 25))
    radius = rng.uniform(4, 14, 25)
    star = np.stack([15.3 + radius * np.cos(angles), 12.1 + radius * np.sin(angles)], 1)
    hole = star * 0.3 + 9.77
    solid = inside(star, (32, 27))
    for polygons, expected in (([star], solid), ([star, hole], solid ^ inside(hole, (32, 27)))):
        filled = fill(polygons, (32, 27))
        # Centres within 0.01 of a line count as inside here: a few of some two hundred.
        assert not (expected & ~filled).any() and (filled & ~expected).sum() <= 3


SQUARE = np.array([[2.0, 2], [6, 2], [6, 5], [2, 5]])


def test_centres_on_the_line_belong_to_the_structure() -> None:
    expected = np.zeros((9, 8), bool)
    expected[2:7, 2:6] = True
    assert np.array_equal(fill([SQUARE], (9, 8)), expected)
    assert np.array_equal(fill([SQUARE[::-1]], (9, 8)), expected)
    assert np.array_equal(fill([SQUARE + 0.004], (9, 8)), expected)
    assert np.array_equal(fill([np.vstack([SQUARE, SQUARE[:1]])], (9, 8)), expected)


def test_a_keyhole_contour_closes_around_its_hole() -> None:
    outer = np.array([[0.5, 0.5], [9.5, 0.5], [9.5, 9.5], [0.5, 9.5]])
    inner = np.array([[3.5, 3.5], [3.5, 6.5], [6.5, 6.5], [6.5, 3.5]])
    keyhole = np.vstack([outer, outer[:1], inner, inner[:1]])
    expected = np.zeros((11, 11), bool)
    expected[1:10, 1:10] = True
    expected[4:7, 4:7] = False
    assert np.array_equal(fill([keyhole], (11, 11)), expected)
    assert np.array_equal(fill([outer, inner], (11, 11)), expected)


def test_polygons_beyond_the_grid_are_cut_off() -> None:
    assert fill([np.array([[-5.0, -5], [20, -5], [20, 20], [-5, 20]])], (4, 3)).all()
    assert not fill([SQUARE + 50], (9, 8)).any()
    assert not fill([SQUARE - 50], (9, 8)).any()


# ------------------------------------------------------------------ RTSTRUCT
BIG = (24, 20, 6)


def to_lps(points: np.ndarray, image: Volume) -> np.ndarray:
    assert image.affine is not None
    ras = points @ image.affine[:3, :3].T + image.affine[:3, 3]
    return ras * [-1, -1, 1]


def outlines(mask: np.ndarray, image: Volume) -> list[made.Contour]:
    """Closed contours, half way between the voxels of a mask and their neighbours."""
    found: list[made.Contour] = []
    for k in range(mask.shape[2]):
        for line in find_contours(np.pad(mask[:, :, k], 1).astype(float), 0.5):
            flat = np.column_stack([line[:-1] - 1, np.full(len(line) - 1, k)])
            found.append(("CLOSED_PLANAR", to_lps(flat, image)))
    return found


def ring() -> np.ndarray:
    i, j, k = np.indices(BIG)
    distance = np.hypot((i - 11) * 0.8, j - 9)
    return (distance < 7) & (distance > 2.5) & (k > 0) & (k < 5)


@pytest.mark.parametrize("orientation", [made.AXIAL, made.SAGITTAL, made.OBLIQUE])
def test_contours_give_back_the_mask_they_were_drawn_around(tmp_path: Path, orientation: np.ndarray) -> None:
    image = image_of(orientation, BIG)
    island = np.zeros(BIG, bool)
    island[3:6, 4:9, 2] = island[14:20, 4:9, 2] = True
    path = made.write_rtstruct(
        tmp_path / "r", {4: ("ring", outlines(ring(), image)), 2: ("islands", outlines(island, image))}
    )
    assert is_segmentation(path)
    read = read_segmentation(path, image)
    assert [(s.number, s.name) for s in read.segments] == [(2, "islands"), (4, "ring")]
    assert np.array_equal(read.segments[0].mask, island) and np.array_equal(read.segments[1].mask, ring())
    assert not read.notes


def test_contours_on_a_volume_with_other_axes(tmp_path: Path) -> None:
    """The image came as NIfTI with the slices along the first axis."""
    image = image_of(made.AXIAL, BIG)
    assert image.affine is not None
    turned = Volume(image.array.transpose(0, 3, 1, 2), image.affine[:, [2, 0, 1, 3]])
    path = made.write_rtstruct(tmp_path / "r", {1: ("ring", outlines(ring(), image))})
    assert np.array_equal(read_segmentation(path, turned).segments[0].mask, ring().transpose(2, 0, 1))


def test_contours_on_a_placed_picture(tmp_path: Path) -> None:
    volume = image_of(made.AXIAL, BIG)
    made.write_series(tmp_path / "i", np.zeros((24, 20, 1), np.int16), origin=at(2))
    path = made.write_rtstruct(tmp_path / "r", {1: ("a", outlines(ring() & (np.arange(6) == 2), volume))})
    image = read_dicom(tmp_path / "i/IM000.dcm", 2)
    assert np.array_equal(read_segmentation(path, image).segments[0].mask, ring()[:, :, 2].T)


def square_at(k: float, shift: float = 0) -> np.ndarray:
    flat = np.column_stack([SQUARE + shift, np.full(4, k)])
    return to_lps(flat, image_of(made.AXIAL, BIG))


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (square_at(2.4), r"ROI 7 'x' lies at 2\.40 to 2\.40 on .* up to 0\.40 slices from slice 2"),
        (square_at(9), r"lies on slice 9, the image has 0 to 5.*24×20×6 voxels of 0\.5×1\.5×2\.5 mm"),
        (square_at(2, 90), r"ROI 7 'x' lies outside the image"),
        (square_at(2)[:, [0, 2, 1]] + [0, -50, 30], r"slices from slice|lies on slice"),
    ],
)  # fmt: skip
def test_contours_beside_the_slices_are_refused(tmp_path: Path, points: np.ndarray, says: str) -> None:
    path = made.write_rtstruct(
        tmp_path / "r", {7: ("x", [("CLOSED_PLANAR", square_at(1)), ("CLOSED_PLANAR", points)][1:])}
    )
    with pytest.raises(DataError, match=says):
        read_segmentation(path, image_of(made.AXIAL, BIG))


def test_a_contour_that_stands_there_twice_is_drawn_once(tmp_path: Path) -> None:
    image = image_of(made.AXIAL, BIG)
    lines = outlines(ring(), image)
    again = [(kind, np.roll(points[::-1], 2, axis=0)) for kind, points in lines[:3]]
    path = made.write_rtstruct(tmp_path / "r", {4: ("ring", [*lines, *again])})
    read = read_segmentation(path, image)
    assert np.array_equal(read.segments[0].mask, ring())
    assert "3 contour(s) stand there twice" in " ".join(read.notes)


@pytest.mark.parametrize("kind", ["contours", "frames"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_label_of_thicker_slices_than_its_image_is_told(tmp_path: Path, kind: str, step: int) -> None:
    image = image_of(made.AXIAL, (24, 20, 9))
    mask = np.zeros(image.shape, bool)
    mask[3:9, 4:9, 1::step] = True
    if kind == "contours":
        path = made.write_rtstruct(tmp_path / "l", {1: ("a", outlines(mask, image))})
    else:
        path = made.write_seg(tmp_path / "l", frames_of({1: mask}), {1: "a"})
    read = read_segmentation(path, image)
    assert np.array_equal(read.segments[0].mask, mask)
    assert (f"one slice in {step} alone" in " ".join(read.notes)) == (step > 1)


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_a_label_of_another_frame_of_reference_is_told(tmp_path: Path, kind: str) -> None:
    """A label of another patient lies on the same grid as easily as one of this: scanners have presets."""
    image = replace(image_of(), frame="1.2.3.5")
    path, own = tmp_path / "s", tmp_path / "o"
    for file, frame in ((path, "1.9"), (own, "1.2.3.5")):
        if kind == "SEG":
            made.write_seg(file, frames_of({1: LABEL}), {1: "liver"}, FrameOfReferenceUID=frame)
        else:
            made.write_rtstruct(file, {1: ("liver", [])})
            held = pydicom.dcmread(file)
            held.FrameOfReferenceUID = "1.7"
            held.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = frame
            held.save_as(file)
    told = [n for n in read_segmentation(path, image).notes if "frame of reference" in n]
    assert len(told) == 1 and "1.9" in told[0] and "1.2.3.5" in told[0]
    assert not any("frame of reference" in n for n in read_segmentation(own, image).notes)


def test_points_and_open_lines_are_ignored_with_a_note(tmp_path: Path) -> None:
    contours: list[made.Contour] = [
        ("CLOSED_PLANAR", square_at(1)),
        ("POINT", square_at(2)[:1]),
        ("OPEN_PLANAR", square_at(3)),
    ]
    path = made.write_rtstruct(tmp_path / "r", {7: ("x", contours), 8: ("iso", contours[1:2])})
    read = read_segmentation(path, image_of(made.AXIAL, BIG))
    assert read.segments[0].mask.sum() == 20 and not read.segments[1].mask.any()
    said = " | ".join(read.notes)
    assert "ROI 7 'x': 1 contour(s) of the kind POINT" in said and "OPEN_PLANAR" in said
    assert "ROI 8 'iso' has no closed contour" in said


def test_contours_over_the_edge_are_cut_off_with_a_note(tmp_path: Path) -> None:
    path = made.write_rtstruct(tmp_path / "r", {7: ("x", [("CLOSED_PLANAR", square_at(1, -4))])})
    read = read_segmentation(path, image_of(made.AXIAL, BIG))
    assert read.segments[0].mask.sum() == 3 * 2 and "cut off" in read.notes[0]


def test_damaged_contours_and_pictures_without_a_place_are_refused(tmp_path: Path) -> None:
    path = made.write_rtstruct(tmp_path / "r", {7: ("x", [("CLOSED_PLANAR", square_at(1))])})
    picture = read_dicom(made.picture(tmp_path / "x", np.zeros((5, 7), np.uint8)), 2)
    with pytest.raises(DataError, match="gives positions in the patient, and the image has none"):
        read_segmentation(path, picture)
    import pydicom

    broken = pydicom.dcmread(path)
    contour = broken.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = list(contour.ContourData)[:-3]
    broken.save_as(path)
    with pytest.raises(DataError, match=r"a contour of ROI 7 has 9 values, 4 points are announced"):
        read_segmentation(path, image_of(made.AXIAL, BIG))
