"""Bringing a label onto the grid of its image, exactly or not at all.

Two grids hold the same voxels where one maps to the other by exchanging and reversing axes and by whole
voxels of offset. Affines are rounded by whoever writes them, so this has to hold within a quarter of a voxel,
along each axis, at every corner of the label: a voxel is then never taken for its neighbour (that begins at a
half), and a shift by half a voxel, the usual fault of converters, is not passed over. A wide grid adds the
rounding of its voxel size up: where no number differs by more than rounding does, the corners may lie up to
a half apart, and the centre a quarter.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.volume import Volume, spacing_of

TOLERANCE_VOXELS = 0.25
"""How far, along each axis, a voxel may lie from where it should."""
ROUNDING, ROUNDED_TOLERANCE_VOXELS = 2e-3, 0.5
"""Voxel sizes and directions that differ by this part are the same, rounded; for them the corners may lie
further apart."""

RESAMPLE = (
    "Resample the label onto the image's grid (nearest neighbour), or export it anew from the tool it was "
    "drawn in; do not edit its header, which would move the mask in the patient."
)


@dataclass(frozen=True, slots=True)
class GridStep:
    """How the voxels of one grid are those of another: index on the image = sign · label index + offset."""

    axes: tuple[int, ...]
    """For each axis of the image, the label's."""
    signs: tuple[int, ...]
    offsets: tuple[int, ...]


def onto_image(
    array: np.ndarray, affine: np.ndarray | None, image: Volume, file: Path, image_file: Path
) -> np.ndarray:
    """A label (n, *spatial) on its own grid → the same values on the image's grid. Raises DataError.

    What the label's grid does not cover is 0. Without an affine on either side the shapes must be equal.
    """
    shape = tuple(array.shape[1:])
    if image.affine is None or affine is None:
        if shape != image.shape:
            raise _other_shape(shape, image.shape, file, image_file)
        return array
    step = _step(shape, affine, image.shape, image.affine)
    if step is None:
        raise _other_grid(shape, affine, image, file, image_file)
    return _moved(array, step, image.shape, file, image_file)


def offset_note(
    shape: tuple[int, ...], affine: np.ndarray | None, image: Volume, file: Path
) -> tuple[str, ...]:
    """What to say of a label that has its image's size and another place, as an unset header may give it."""
    if image.affine is None or affine is None:
        return ()
    step = _step(shape, affine, image.shape, image.affine)
    if step is None or tuple(shape[a] for a in step.axes) != image.shape or _covers(step, image.shape):
        return ()
    apart = [o if s > 0 else o - n + 1 for s, o, n in zip(step.signs, step.offsets, image.shape, strict=True)]
    return (
        f"{file.name}: has the shape of its image, but lies {', '.join(map(str, apart))} voxels beside it; "
        "its header was followed. If the header is wrong, export the label anew",
    )


def same_grid(
    array: np.ndarray, affine: np.ndarray | None, first: Volume, file: Path, first_file: Path
) -> np.ndarray:
    """A further channel (1, *spatial) on the grid of the first one, all of it. Raises DataError."""
    shape = tuple(array.shape[1:])
    if first.affine is None or affine is None:
        if shape != first.shape:
            raise _other_channel(shape, affine, first, file, first_file)
        return array
    step = _step(shape, affine, first.shape, first.affine)
    if step is None or tuple(shape[a] for a in step.axes) != first.shape or not _covers(step, first.shape):
        raise _other_channel(shape, affine, first, file, first_file)
    return _moved(array, step, first.shape, file, first_file)


def _covers(step: GridStep, shape: tuple[int, ...]) -> bool:
    return all(o == (0 if s > 0 else n - 1) for s, o, n in zip(step.signs, step.offsets, shape, strict=True))


# ---------------------------------------------------------------- how the grids lie


def _step(
    shape: tuple[int, ...], affine: np.ndarray, image_shape: tuple[int, ...], image_affine: np.ndarray
) -> GridStep | None:
    """The step from a label's grid to its image's; None where the voxels are others."""
    dims = len(image_shape)
    if len(shape) != dims:
        return None
    to_image = np.linalg.pinv(image_affine[:3, :dims])
    matrix = to_image @ affine[:3, :dims]
    axes = tuple(int(a) for a in np.abs(matrix).argmax(axis=1))
    if len(set(axes)) != dims:
        return None
    signs = tuple(int(np.sign(matrix[i, a])) for i, a in enumerate(axes))
    offset = to_image @ (affine[:3, 3] - image_affine[:3, 3])
    exact = np.zeros_like(matrix)
    for i, (a, s) in enumerate(zip(axes, signs, strict=True)):
        exact[i, a] = s
    # Where the grids overlap is where it counts: an offset far from the origin must not add its own rounding.
    corners = _corners(shape)
    at = matrix @ corners + offset[:, None]
    whole: np.ndarray = np.round((at - exact @ corners).mean(axis=1))
    if not _within(at - exact @ corners - whole[:, None], matrix - exact):
        return None
    plane = affine[:3, :dims] @ corners + affine[:3, 3:] - image_affine[:3, 3:]
    beside = np.linalg.norm(plane - image_affine[:3, :dims] @ at, axis=0).max()
    if beside > TOLERANCE_VOXELS * min(spacing_of(image_affine, dims)):
        return None
    step = GridStep(axes, signs, tuple(int(w) for w in whole))
    return step if all(a < b for a, b in _overlap(step, shape, image_shape)) else None


def _within(apart: np.ndarray, turned: np.ndarray) -> bool:
    """Whether corners (dims, n) that lie so far from where they should, in voxels, are there by rounding."""
    if not np.isfinite(apart).all() or np.abs(apart.mean(axis=1)).max() > TOLERANCE_VOXELS:
        return False
    rounded = np.abs(turned).max() <= ROUNDING
    return bool(np.abs(apart).max() < (ROUNDED_TOLERANCE_VOXELS if rounded else TOLERANCE_VOXELS))


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    return np.array(list(itertools.product(*[(0, n - 1) for n in shape])), np.float64).T


def _overlap(step: GridStep, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, end) of the label's part on each axis of the image, cut to the image."""
    found = []
    for axis, sign, offset, n in zip(step.axes, step.signs, step.offsets, image_shape, strict=True):
        low = offset if sign > 0 else offset - (shape[axis] - 1)
        found.append((max(0, low), min(n, low + shape[axis])))
    return found


def _moved(
    array: np.ndarray, step: GridStep, image_shape: tuple[int, ...], file: Path, image_file: Path
) -> np.ndarray:
    shape = tuple(array.shape[1:])
    turned = array.transpose(0, *(a + 1 for a in step.axes))
    turned = turned[(slice(None), *(slice(None, None, s) for s in step.signs))]
    parts = _overlap(step, shape, image_shape)
    if all(p == (0, n) for p, n in zip(parts, image_shape, strict=True)) and turned.shape[1:] == image_shape:
        return np.ascontiguousarray(turned)  # torch takes no reversed axes
    lows = [
        o if s > 0 else o - (shape[a] - 1)
        for a, s, o in zip(step.axes, step.signs, step.offsets, strict=True)
    ]
    inside = turned[
        (slice(None), *(slice(a - low, b - low) for (a, b), low in zip(parts, lows, strict=True)))
    ]
    outside = int(np.count_nonzero(array)) - int(np.count_nonzero(inside))
    if outside:
        raise DataError(
            f"{outside} of its {int(np.count_nonzero(array))} labelled voxels lie outside its image "
            f"({image_file.name})",
            file=file,
            key="grid",
            remedy="Check that this label belongs to this image; if it does, cut it to the image's extent.",
        )
    out = np.zeros((array.shape[0], *image_shape), array.dtype)
    out[(slice(None), *(slice(a, b) for a, b in parts))] = inside
    return out


# ---------------------------------------------------------------- in words


def described(shape: tuple[int, ...], affine: np.ndarray | None) -> str:
    """A grid in words: shape, voxel size, orientation, origin."""
    text = f"shape {shape}"
    if affine is None:
        return f"{text}, no voxel size"
    origin = ", ".join(f"{x:.4g}" for x in affine[:3, 3])
    return (
        f"{text}, voxels {millimetres(spacing_of(affine, len(shape)))} mm, "
        f"axes {orientation(affine, len(shape))}, origin ({origin}) mm"
    )


def orientation(affine: np.ndarray, dims: int) -> str:
    """The direction that each axis mostly points to, such as RAS."""
    letters = ("LR", "PA", "IS")
    found = ""
    for axis in range(dims):
        main = int(np.abs(affine[:3, axis]).argmax())
        found += letters[main][int(affine[main, axis] > 0)]
    return found


def millimetres(spacing: tuple[float, ...] | None) -> str:
    """Sizes as 1×1×2.5."""
    return "×".join(f"{s:.5g}" for s in spacing or ())


def _apart_mm(shape: tuple[int, ...], affine: np.ndarray, image: Volume) -> float:
    """How far the corners of two grids lie apart, each from the nearest of the other's."""
    assert image.affine is not None
    one = affine[:3, : len(shape)] @ _corners(shape) + affine[:3, 3:]
    dims = len(image.shape)
    other = image.affine[:3, :dims] @ _corners(image.shape) + image.affine[:3, 3:]
    return float(np.linalg.norm(one[:, :, None] - other[:, None], axis=0).min(axis=1).max())


def _other_grid(
    shape: tuple[int, ...], affine: np.ndarray, image: Volume, file: Path, image_file: Path
) -> DataError:
    notes = f" ({'; '.join(image.notes)})" if image.notes else ""
    return DataError(
        f"does not lie on the same grid as its image: the label has {described(shape, affine)}; the image "
        f"({image_file.name}) has {described(image.shape, image.affine)}; the affine's corners lie up to "
        f"{_apart_mm(shape, affine, image):.1f} mm apart{notes}",
        file=file,
        key="grid",
        remedy=RESAMPLE,
    )


def _other_shape(
    shape: tuple[int, ...], image_shape: tuple[int, ...], file: Path, image_file: Path
) -> DataError:
    return DataError(
        f"does not lie on the same grid as its image: its shape is {shape}, the image's {image_shape} "
        f"({image_file.name})",
        file=file,
        key="shape",
        value=shape,
        remedy="Resample the label onto the image's grid, or correct the data list.",
    )


def _other_channel(
    shape: tuple[int, ...], affine: np.ndarray | None, first: Volume, file: Path, first_file: Path
) -> DataError:
    if affine is None or first.affine is None:
        problem = f"has another shape than the first channel, {first_file}: {shape} against {first.shape}"
    else:
        apart, voxels = _apart_mm(shape, affine, first), millimetres(spacing_of(affine, len(shape)))
        problem = (
            f"lies elsewhere than {first_file}: corners up to {apart:.1f} mm apart, "
            f"voxels {voxels} against {millimetres(first.spacing_mm)} mm, "
            f"shape {shape} against {first.shape}, axes {orientation(affine, len(shape))} against "
            f"{orientation(first.affine, len(first.shape))}"
        )
    return DataError(
        problem,
        file=file,
        key="grid",
        remedy="Files listed together are the channels of one image: register and resample it.",
    )
