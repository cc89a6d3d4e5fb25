"""Which axes are mirrored: by the names of the classes, by the task's orientation, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import load_image
from gossipseg.learn.data.flips import (
    ANATOMICAL,
    ANTERIOR_POSTERIOR,
    LEFT_RIGHT,
    SUPERIOR_INFERIOR,
    axis_names,
    directions,
    flips_problem,
    resolve,
    spoken_axes,
)
from gossipseg.learn.params import TaskParams, TrainingParams

LR, AP, SI = {LEFT_RIGHT}, {ANTERIOR_POSTERIOR}, {SUPERIOR_INFERIOR}


def task(*labels: str, dims: int = 3, orientation: str | None = None, **keys: Any) -> TaskParams:
    names = dict(enumerate(["background", *(labels or ("tumour",))]))
    return TaskParams("t", 1, names, spatial_dims=dims, orientation=orientation, **keys)  # type: ignore[arg-type]


# ---------------------------------------------------------------- words

NAMES: dict[str, set[str]] = {
    "left": LR,
    "Right Kidney": LR,
    "hippocampus_l": LR,
    "hippocampus-R": LR,
    "kidney (L)": LR,
    "lh": LR,
    "rh.cortex": LR,
    "LeftKidney": LR,
    "kidneyL": LR,
    "LKidney": LR,
    "left1": LR,
    "right-sided effusion": LR,
    "Niere links": LR,
    "ren dexter": LR,
    "anterior": AP,
    "POSTERIOR": AP,
    "ant_horn": AP,
    "front": AP,
    "muscles of the back": AP,
    "posterolateral": AP,
    "antero-lateral": AP,
    "upper_lobe": SI,
    "lowerJaw": SI,
    "sup": SI,
    "bottom": SI,
    "superolateral": SI,
    "craniocaudal": AP | SI,
    "lung_upper_lobe_left": LR | SI,
    "dorsal": AP | SI,
    "mediodorsal nucleus": AP | SI,
    "caudal": AP | SI,
    "ventroposterolateral": AP | SI,
    "distal femur": LR | AP | SI,
    "rightkidney": LR,
    "leftlung": LR,
    "LEFTLUNG": LR,
    "Leftventricle": LR,
    "kidneyright": LR,
    "lefteye": LR,
    "upperjaw": SI,
    "lowerjaw": SI,
    "upperleft": LR | SI,
    "superiorfrontal": SI,
    "superiorparietal": SI,
    "ctx-lh-inferiorparietal": LR | SI,
    "posteriorcingulate": AP,
    "rostralmiddlefrontal": AP | SI,
    "caudalanteriorcingulate": AP | SI,
    "tibialisposterior": AP,
    "levator palpebrae superioris": SI,
    "obere Hohlvene": SI,
    "untere": SI,
    "vordere": AP,
    "hintere": AP,
    "hinterer Anteil": AP,
    "im linken Lappen": LR,
    "Unterkiefer": SI,
    "lobe supérieur": SI,
    "supe\u0301rieur": SI,
    "INFÉRIEUR": SI,
    "antérieur": AP,
    "postérieure": AP,
    "superiore": SI,
    "inferiore": SI,
    "anteriore": AP,
    "posteriore": AP,
    "ant-post": AP,
    "lt-rt": LR,
}
NO_DIRECTION = (
    *(
        "tumour",
        "lesion",
        "bright",
        "uplefter",
        "interior",
        "infarct",
        "superficial",
        "backbone",
        "bottomless",
    ),
    *(
        "ventricle",
        "caudate",
        "caudoputamen",
        "craniopharyngioma",
        "supraspinatus",
        "prefrontal",
        "anterograde",
    ),
    *(
        "lateral ventricle",
        "medial meniscus",
        "ascending aorta",
        "frontal lobe",
        "RCA",
        "LNs",
        "CSF",
        "label 1",
    ),
    *("cleft", "upright", "copyright", "aright", "fright", "theft", "lowercase", "leftover", "righteous"),
    *("flower", "blower", "sunflower", "follower", "supper", "superiority", "intracranial haemorrhage"),
    *(
        "post-op cavity",
        "post-contrast enhancement",
        "pre-RT GTV",
        "LV",
        "RK",
        "lkid",
        "Lkidney",
        "TMJL",
        "UL1",
    ),
    *("vertebrae_L1", "L5-S1", "R1", "l'aorte", "l’aorte"),
)


@pytest.mark.parametrize(("name", "axes"), NAMES.items(), ids=NAMES.keys())
def test_names_that_speak_of_a_direction(name: str, axes: set[str]) -> None:
    assert directions(name) == axes


@pytest.mark.parametrize("name", NO_DIRECTION)
def test_names_that_do_not(name: str) -> None:
    assert directions(name) == set()


def spoken(*labels: str) -> dict[str, list[str]]:
    return spoken_axes(task(*labels))


@pytest.mark.parametrize(
    "pair",
    [
        *(("LK", "RK"), ("RAG", "LAG"), ("rkid", "lkid"), ("rad", "lad"), ("Lkidney", "Rkidney")),
        *(("Eye_AL", "Eye_AR"), ("Eye_PR", "Eye_PL"), ("TMJL", "TMJR"), ("UL1", "UR1"), ("LR6", "LL6")),
        *(("LV", "RV"), ("LA", "RA"), ("lv", "RV"), ("kidneyl", "kidneyr"), ("PLV", "PRV"), ("plv", "prv")),
        *(("rib L1", "rib R1"), ("myocardium LV", "myocardium RV"), ("EyeAL", "EyeAR")),
    ],
    ids="-".join,
)
def test_a_pair_of_l_and_r_speaks_of_left_and_right(pair: tuple[str, str]) -> None:
    assert spoken("tumour", *pair) == {LEFT_RIGHT: list(pair)}
    assert f"left-right ({', '.join(pair)})" in resolve(task(*pair), TrainingParams()).reason
    alone = [name for name in pair if spoken("tumour", name)]
    assert alone == []


@pytest.mark.parametrize(
    "labels",
    [
        *(("liver", "river"), ("glass", "grass"), ("GLASS", "GRASS"), ("load", "road"), ("hail", "hair")),
        *(("LV", "RA"), ("LV", "LA"), ("LK", "RKs"), ("UL1", "LR6"), ("LL", "RR"), ("cellular", "cerlular")),
        *(("balin", "barin"), ("LK a", "RK b"), ("UP", "LP"), ("UL1", "LL1"), ("UL1", "UR2")),
    ],
    ids="-".join,
)
def test_pairs_that_speak_of_nothing(labels: tuple[str, ...]) -> None:
    assert spoken(*labels) == {}


def test_the_background_is_not_one_of_a_pair() -> None:
    assert spoken_axes(TaskParams("t", 1, {0: "LV", 1: "RV"})) == {}


def test_upper_and_lower_teeth() -> None:
    quarters = ["UL1", "UR1", "LL1", "LR1"]
    assert spoken(*quarters) == {LEFT_RIGHT: quarters, SUPERIOR_INFERIOR: quarters}
    assert spoken("UL1", "UR1", "LL1") == {LEFT_RIGHT: ["UL1", "UR1"], SUPERIOR_INFERIOR: ["UL1", "LL1"]}
    assert spoken("UA", "LA", "RA") == {LEFT_RIGHT: ["LA", "RA"]}  # no teeth


def test_post_needs_ant_and_rt_needs_lt() -> None:
    assert spoken("post horn", "tumour") == spoken("pre-RT GTV", "post-RT GTV") == {}
    assert spoken("ant horn", "post horn") == {ANTERIOR_POSTERIOR: ["ant horn", "post horn"]}
    assert spoken("lt lung", "rt lung") == {LEFT_RIGHT: ["lt lung", "rt lung"]}


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("labels", "dims", "orientation", "names", "axes"),
    [
        (["tumour"], 2, None, ["rows", "columns"], [0, 1]),
        (["left lung"], 2, None, [], []),
        (["tumour"], 3, None, ["first", "second", "third"], [0, 1, 2]),
        (["anterior", "posterior"], 3, None, [], []),
        (["tumour"], 3, "RAS", list(ANATOMICAL), [0, 1, 2]),
        (["anterior", "posterior"], 3, "RAS", [LEFT_RIGHT], [0]),
        (["anterior", "posterior"], 3, "ASL", [LEFT_RIGHT], [2]),
        (["upper", "lower"], 3, "SAR", [LEFT_RIGHT], [2]),
        (["lung_upper_left", "tumour"], 3, "SAR", [], []),
        (["left", "right"], 3, "RAS", [], []),
        (["dorsal"], 3, "LPS", [LEFT_RIGHT], [0]),
        (["left", "anterior", "upper"], 3, "RAS", [], []),
        (["proximal"], 3, "RAS", [], []),
    ],
)
def test_auto(
    labels: list[str], dims: int, orientation: str | None, names: list[str], axes: list[int]
) -> None:
    found = resolve(task(*labels, dims=dims, orientation=orientation), TrainingParams())
    assert (list(found.names), list(found.axes), found.doubt) == (names, axes, "")


def test_the_background_says_nothing() -> None:
    plain = TaskParams("t", 1, {0: "left over", 1: "organ"})
    assert resolve(plain, TrainingParams()).names == ("rows", "columns")


def test_slices_of_volumes_are_two_dimensional() -> None:
    sliced = task("left", dims=2, orientation="RAS", slice_axis=2)
    assert axis_names(sliced) == ("rows", "columns") and resolve(sliced, TrainingParams()).axes == ()


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "SAR", "PIR", "ASL", "IPL", "ILP"])
def test_an_axis_is_where_the_orientation_puts_it(tmp_path: Path, orientation: str) -> None:
    """A voxel is moved in the file by 5 mm to the right, and so on: it moves along that axis of the array."""
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])[[1, 0, 2, 3]]  # of a file whose axes are P, R, S
    names = axis_names(task(orientation=orientation))
    assert set(names) == set(ANATOMICAL)
    for mm, name in enumerate(ANATOMICAL):  # x, y, z of RAS mm
        at = []
        for step in (0, 5):
            place = np.array([-20.0, 10.0, 10.0])
            place[mm] += step
            array = np.zeros((40, 42, 44), np.float32)
            array[tuple(np.rint(np.linalg.inv(affine)[:3, :3] @ place).astype(int))] = 1
            path = tmp_path / f"{name}{step}.nii"
            nibabel.save(nibabel.Nifti1Image(array, affine), path)
            image = load_image(Case("c", path), task(orientation=orientation))[0].image
            at.append(np.array(np.unravel_index(int(image[0].argmax()), image.shape[1:])))
        moved = np.flatnonzero(at[1] - at[0])
        assert moved.tolist() == [names.index(name)] and abs((at[1] - at[0])[moved[0]]) == 5


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("given", "axes", "doubted"),
    [
        ("all", (0, 1, 2), True),
        ("none", (), False),
        ((), (), False),
        ("left-right", (2,), False),
        (("left-right", "superior-inferior"), (0, 2), False),
        (("anterior-posterior",), (1,), True),
    ],
)
def test_axes_chosen_by_hand(given: str | tuple[str, ...], axes: tuple[int, ...], doubted: bool) -> None:
    chosen, training = task("anterior", orientation="SAR"), TrainingParams(flip_axes=given)
    assert flips_problem(chosen, training) is None
    found = resolve(chosen, training)
    assert found.axes == axes and bool(found.doubt) == doubted
    assert ("anterior" in found.doubt) == doubted


def test_without_an_orientation_only_all_axes_are_doubted() -> None:
    """One of fewer axes may be the one that the class speaks of, or may not."""
    plain = task("left", dims=2)
    doubts = [
        resolve(plain, TrainingParams(flip_axes=given)).doubt != ""
        for given in ("all", ("rows", "columns"), "rows", ("columns",), "none")
    ]
    assert doubts == [True, True, False, False, False]


def test_nothing_is_mirrored_without_augmentation() -> None:
    found = resolve(task(), TrainingParams(augment="none", flip_axes="all"))
    assert (found.names, found.axes, found.reason) == ((), (), "training.augment is none")


@pytest.mark.parametrize(
    ("keys", "given", "value", "remedy"),
    [
        ({"dims": 2}, ("left-right",), "left-right", "Write rows or columns"),
        ({}, "left-right", "left-right", "Set task.orientation"),
        ({"orientation": "SAR"}, ("first",), "first", "write superior-inferior for it"),
        ({"orientation": "RAS"}, ("rows",), "rows", "[left-right, anterior-posterior]"),
        ({}, ("third", "auto"), "auto", "without brackets"),
        ({}, (0,), 0, "[first, second]"),
        ({}, ("first", "first"), ["first", "first"], "once"),
    ],
)
def test_axes_that_are_refused(keys: dict[str, Any], given: Any, value: object, remedy: str) -> None:
    found = flips_problem(task(**keys), TrainingParams(flip_axes=given))
    assert found is not None and found[1:3] == ("training.flip_axes", value) and remedy in found[3]
