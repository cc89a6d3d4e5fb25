"""No patient is in two splits, as far as lists, a site's own rule, or names tell."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gossipseg.errors import DataError
from gossipseg.learn.commands import check
from gossipseg.learn.data.cases import SPLITS, Splits
from gossipseg.learn.data.cases import Case as C
from gossipseg.learn.data.datalist import load_cases, scan_cases
from gossipseg.learn.data.division import crossing
from gossipseg.learn.data.patients import patient_of, patients_of
from gossipseg.learn.params import DataParams
from tests.learn.harness import make_spec, make_trainer
from tests.learn.imagery import png_site, write_list


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("PANCREAS_0002-1090", "PANCREAS_0002"),
        ("10010_12", "10010"),
        ("a_10026_60", "a_10026"),
        ("TCGA_CS_4943_20000902_13", "TCGA_CS_4943"),
        ("Image_01L", "Image_01"),
        ("Image_01R", "Image_01"),
        ("Image_01L_1", "Image_01"),
        ("01_OD", "01"),
        ("patient001_frame01", "patient001"),
        ("sub-01_ses-02_T1w", "sub-01"),
        ("case0005_slice000", "case0005"),
        ("patient0001_2CH_ED", "patient0001"),
        ("hippocampus_034", "hippocampus_034"),
        ("case_001", "case_001"),
        ("01_dr", "01_dr"),
        ("im0001", "im0001"),
        ("1002", "1002"),
    ],
)
def test_the_patient_as_far_as_a_name_tells(case: str, patient: str) -> None:
    assert patient_of(case) == patient


def test_what_all_names_begin_with_is_the_studys() -> None:
    two = patients_of(["BraTS20_001", "BraTS20_002", "UPENN-GBM-00001", "UPENN-GBM-00002"])
    assert two == {name: name for name in two}, "of each study by itself"
    assert patients_of(["BraTS20_001", "BraTS20_002"]) == {n: n for n in ("BraTS20_001", "BraTS20_002")}
    slices = ["BraTS20_001_7", "BraTS20_001_8", "BraTS20_011_7"]
    assert list(patients_of(slices).values()) == ["BraTS20_001", "BraTS20_001", "BraTS20_011"]
    assert list(patients_of(["1_1", "1_2", "10_1"]).values()) == ["1", "1", "10"]
    assert patients_of(["x1_1"]) == {"x1_1": "x1_1"} and patients_of([]) == {}


def folders(root: Path, names: list[str]) -> None:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for name in names:
            (root / kind / f"{name}.png").write_bytes(b"")


SCHEMES = [
    *("patient{:03d}_{:02d}", "{}-{}", "BraTS20_{:03d}_{}", "Image_{:02d}{}", "patient{:03d}_frame{:02d}"),
    "sub-{:02d}_ses-{:02d}_T1w",
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("listed", [False, True])
def test_a_split_of_the_products_own_keeps_patients_whole(tmp_path: Path, scheme: str, listed: bool) -> None:
    sides = ("L", "R") if scheme.startswith("Image") else range(6)
    truth = {scheme.format(p, side): p for p in range(1, 13) for side in sides}
    folders(tmp_path, list(truth))
    if listed:
        entries = [{"image": f"images/{n}.png", "label": f"masks/{n}.png"} for n in truth]
        write_list(tmp_path, {"training": entries})
    splits = load_cases(DataParams(str(tmp_path)), "north")
    patients = [{truth[case.id] for case in splits.of(name)} for name in SPLITS]
    assert sum(map(len, patients)) == 12 and patients[0] and patients[1] and (listed or patients[2])


def test_a_rule_of_the_sites_own_goes_before_the_names(tmp_path: Path) -> None:
    folders(tmp_path, [f"{slice}of{patient}" for patient in "abcdefghijkl" for slice in range(5)])
    data = DataParams(str(tmp_path), patient_pattern=r"\d+of(.)")
    splits = load_cases(data, "north")
    patients = [{case.patient for case in splits.of(name)} for name in SPLITS]
    assert sum(map(len, patients)) == 12 == len(set.union(*patients))
    (tmp_path / "images" / "stray.png").write_bytes(b"")
    (tmp_path / "masks" / "stray.png").write_bytes(b"")
    with pytest.raises(DataError, match="stray") as caught:
        load_cases(data, "north")
    assert caught.value.key == "data.patient_pattern" and caught.value.remedy


def listed(root: Path, *patients: object) -> Path:
    """A list of one training, one validation and one test case of these patients."""
    png_site(root, {"training": 1, "validation": 1, "test": 1})
    entries = {
        split: [{"image": f"images/{split}_0.png", "label": f"masks/{split}_0.png", "patient": patient}]
        for split, patient in zip(SPLITS, patients, strict=True)
    }
    write_list(root, entries)
    return root


def test_a_patient_that_the_list_puts_into_two_splits_is_refused(tmp_path: Path) -> None:
    problems: list[DataError] = []
    scan_cases(DataParams(str(listed(tmp_path, 7, "8", "7"))), "north", problems.append)
    (problem,) = problems
    assert (problem.key, problem.value) == ("patient", "7") and "training and test" in problem.problem
    assert problem.file == tmp_path / "dataset.json" and problem.remedy


@pytest.mark.parametrize("patient", ["", 1.5, True, ["7"]])
def test_a_patient_without_a_name_is_refused(tmp_path: Path, patient: object) -> None:
    with pytest.raises(DataError) as caught:
        load_cases(DataParams(str(listed(tmp_path, patient, "8", "9"))), "north")
    assert (caught.value.key, caught.value.value) == ("training.0.patient", patient)


def test_what_names_alone_tell_against_a_list_is_a_warning(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 2, "validation": 1, "test": 1})
    for kind in ("images", "masks"):
        for old, new in (("training_0", "p1_1"), ("training_1", "p2_1"), ("validation_0", "p3_1")):
            (tmp_path / kind / f"{old}.png").rename(tmp_path / kind / f"{new}.png")
        (tmp_path / kind / "test_0.png").rename(tmp_path / kind / "p1_2.png")
    lists = {"training": ["p1_1", "p2_1"], "validation": ["p3_1"], "test": ["p1_2"]}
    write_list(
        tmp_path,
        {s: [{"image": f"images/{n}.png", "label": f"masks/{n}.png"} for n in ns] for s, ns in lists.items()},
    )
    found = check.check(make_spec(tmp_path, tmp_path / "state"))
    assert found["problems"] == []
    assert [w for w in found["warnings"] if "patient p1 has images in training and test" in w]
    assert found["patients"] == {"training": 2, "validation": 1, "test": 1}


def entries(*names: str, **more: str) -> list[dict[str, str]]:
    return [{"image": f"images/{n}.png", "label": f"masks/{n}.png", **more} for n in names]


def test_validation_is_carved_patient_by_patient(tmp_path: Path) -> None:
    training = [f"p07_{i}" for i in range(6)] + [f"p09_{i}" for i in range(6)]
    folders(tmp_path, training)
    write_list(tmp_path, {"training": entries(*training)})
    splits = load_cases(DataParams(str(tmp_path), validation_fraction=0.5), "north")
    assert crossing(splits) == [] and len(splits.validation) == 6


def test_names_of_the_other_splits_tell_patients_too(tmp_path: Path) -> None:
    """Of training alone p07_ would be the study's name, and the slices of one patient were carved apart."""
    training, test = [f"p07_{i}" for i in range(6)], ["p08_0"]
    folders(tmp_path, [*training, *test])
    write_list(tmp_path, {"training": entries(*training), "test": entries(*test)})
    with pytest.raises(DataError, match="need a patient each") as caught:
        load_cases(DataParams(str(tmp_path), validation_fraction=0.5), "north")
    assert "patient" in caught.value.remedy


def test_cases_of_one_name_in_many_folders_keep_their_own_patients(tmp_path: Path) -> None:
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for site, split in (("a", "validation"), ("b", "training")):
        folders(tmp_path / site, ["c3", f"only_{site}"])
        found = entries("c3", f"only_{site}", patient=f"{site}/3")
        lists[split] += [
            {**e, "image": f"{site}/{e['image']}", "label": f"{site}/{e['label']}"} for e in found
        ]
    write_list(tmp_path, lists)
    splits = load_cases(DataParams(str(tmp_path)), "north")
    ids = [case.id for _, case in splits]
    assert sorted(ids) == ["a_images_c3", "b_images_c3", "only_a", "only_b"]


def test_numbered_slices_that_are_not_named_after_their_folder_are_told(tmp_path: Path) -> None:
    """P01 has slices of numbers that nobody else has: their names tell nothing."""
    slices = [f"{patient}/{i}" for patient, n in (("P01", 9), ("P02", 4), ("P03", 4)) for i in range(n)]
    for name in slices:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(name.encode())
        (tmp_path / f"{name}_mask.png").write_bytes(f"{name} mask".encode())
    found = [{"image": f"{n}.png", "label": f"{n}_mask.png"} for n in slices]
    said: list[str] = []
    write_list(tmp_path, {"training": found})
    scan_cases(DataParams(str(tmp_path)), "north", pytest.fail, warn=said.append)
    assert any("P01" in text and "(4)" in text and "`patient`" in text for text in said)
    said.clear()
    write_list(tmp_path, {"training": [e | {"patient": e["image"][:3]} for e in found]})
    splits = scan_cases(DataParams(str(tmp_path)), "north", pytest.fail, warn=said.append)
    assert not said and len({c.patient for _, c in splits}) == 3 and crossing(splits) == []


def test_a_list_says_whose_all_cases_are_or_of_none(tmp_path: Path) -> None:
    folders(tmp_path, ["a", "b", "c", "d"])
    both = [*entries("a", "b", patient="p1"), *entries("c", patient="p2"), *entries("d")]
    write_list(tmp_path, {"training": both})
    with pytest.raises(DataError, match=r"dataset\.json: patient.* 1 of 4 cases name no patient \(d\)"):
        load_cases(DataParams(str(tmp_path)), "north")
    for lists in ({"training": both[:2], "validation": both[2:3]}, {"training": both[:3]}):
        write_list(tmp_path, {**lists, "test": both[3:]})
        said: list[str] = []
        scan_cases(DataParams(str(tmp_path)), "north", pytest.fail, warn=said.append)
        assert any("some cases name no patient" in text for text in said)


@pytest.mark.parametrize(("other", "refused"), [("P01 ", True), ("p01", False)])
def test_a_patient_is_written_in_one_way(tmp_path: Path, other: str, refused: bool) -> None:
    folders(tmp_path, ["a", "b", "c", "d"])
    found = [*entries("a", patient="P01"), *entries("b", patient=other), *entries("c", patient="p02")]
    write_list(tmp_path, {"training": [*found, *entries("d", patient="p03")]})
    said: list[str] = []
    if refused:
        with pytest.raises(DataError, match=r"b = 'P01 '.* is written 'P01' beside another case"):
            load_cases(DataParams(str(tmp_path)), "north")
    else:
        scan_cases(DataParams(str(tmp_path)), "north", pytest.fail, warn=said.append)
        assert any("P01 and p01 count as two" in text for text in said)


def test_a_name_is_not_a_study_because_few_are_left() -> None:
    splits = Splits((C("k1_1", Path("a")),), (C("k1_2", Path("b")),), (C("k2_1", Path("c")),))
    assert crossing(splits) == [("k1", "training", "validation")]


def test_a_site_says_whose_the_scored_cases_are(tmp_path: Path) -> None:
    """By the list, by the rule, by the names of all splits, else on its own; only cases with a label."""
    png_site(tmp_path / "told", {"training": 2, "validation": 3, "test": 3})
    lists = json.loads((tmp_path / "told" / "dataset.json").read_text())
    for entry, patient in zip(lists["validation"], ("ann", "bob", "ann"), strict=True):
        entry["patient"] = patient
    del lists["test"][1]["label"]
    write_list(tmp_path / "told", lists)
    site = make_trainer(make_spec(tmp_path / "told", tmp_path / "state")).site
    assert site.patients("validation") == ("ann", "bob", "ann")
    assert site.patients("test") == ("test_0", "test_2"), "the case in between is not scored"

    spec = make_spec(tmp_path / "told", tmp_path / "state")
    for entry in lists["validation"]:
        del entry["patient"]
    write_list(tmp_path / "told", lists)
    ruled = dataclasses.replace(spec, data={**spec.data, "patient_pattern": r"(.+)_\d"})
    assert make_trainer(ruled).site.patients("validation") == ("validation",) * 3
