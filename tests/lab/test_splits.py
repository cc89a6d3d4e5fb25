"""Redrawn splits: patients stay together, sizes stay, and the same number gives the same division."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.errors import DataError
from gossipseg.lab.plan import splits
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.division import crossing
from gossipseg.learn.data.patients import patient_of
from gossipseg.learn.params import DataParams


def case(name: str, *, label: bool = True) -> Case:
    return Case(name, Path(f"/x/{name}.png"), Path(f"/m/{name}.png") if label else None)


def site(names: list[str], validation: int, test: int) -> Splits:
    cases = tuple(case(name) for name in names)
    return Splits(cases[test + validation :], cases[test : test + validation], cases[:test])


SLICES = [f"p{patient}_{k}" for patient in range(12) for k in range(1 + patient % 3)]


@given(st.integers(0, 10_000))
def test_no_patient_crosses_a_redrawn_split(number: int) -> None:
    own = site(SLICES, 5, 7)
    drawn = splits.redrawn(own, number)
    patients = [{patient_of(c.id) for c in drawn.of(name)} for name in SPLITS]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    assert sorted(c.id for _, c in drawn) == sorted(SLICES)
    assert 7 <= len(drawn.test) <= 9 and 5 <= len(drawn.validation) <= 7


@given(st.integers(0, 10_000))
def test_slices_that_stand_side_by_side_do_not_cross(number: int) -> None:
    own = site([str(n) for n in range(3000, 3060)], 8, 16)
    drawn = splits.redrawn(own, number)
    for one, other in (("training", "validation"), ("training", "test"), ("validation", "test")):
        least = min(abs(int(a.id) - int(b.id)) for a in drawn.of(one) for b in drawn.of(other))
        assert least > splits.NEAR, (one, other)
    assert (len(drawn.test), len(drawn.validation)) == (16, 8) and len(drawn.training) >= 24


def test_numbers_give_other_divisions_and_the_same_one_again() -> None:
    own = site(SLICES, 5, 7)
    tests = [frozenset(c.id for c in splits.redrawn(own, n).test) for n in (1, 2, 3)]
    assert len(set(tests)) == 3
    shuffled = Splits(own.test, own.training, own.validation)  # the order of the lists decides nothing
    moved = splits.redrawn(Splits(own.training[::-1], own.validation, own.test), 1)
    assert frozenset(c.id for c in moved.test) == tests[0]
    assert len(splits.redrawn(shuffled, 1).test) >= len(shuffled.test)


def test_cases_without_a_label_stay_in_the_test_split() -> None:
    own = site(SLICES, 5, 7)
    own = Splits(own.training, own.validation, (*own.test, case("unlabelled", label=False)))
    drawn = splits.redrawn(own, 1)
    assert "unlabelled" in {c.id for c in drawn.test} and len(drawn.test) >= 8
    assert all(c.label is not None for c in (*drawn.training, *drawn.validation))


def test_lists_are_written_for_all_but_the_sites_own_split(hospitals: Path, tmp_path: Path) -> None:
    sources = {"north": DataParams(str(hospitals / "north"))}
    splits.write(tmp_path, sources, [0, 1])
    assert not splits.folder_of(tmp_path, 0, "north").exists()
    own = load_cases(sources["north"], "north")
    drawn = load_cases(DataParams(str(splits.folder_of(tmp_path, 1, "north"))), "north")
    assert {c.image for _, c in drawn} == {c.image for _, c in own}
    assert {c.id for c in drawn.test} != {c.id for c in own.test}


def test_a_case_without_a_label_goes_where_its_patient_goes_or_nowhere() -> None:
    labelled = [case(f"p{p}_{k}") for p in range(1, 13) for k in range(2)]
    own = Splits(tuple(labelled[6:]), tuple(labelled[3:6]), (*labelled[:3], case("p1_9", label=False)))
    met = set()
    for number in range(1, 30):
        drawn = splits.redrawn(own, number)
        assert crossing(drawn) == []
        met.add("p1_9" in {c.id for c in drawn.test})
    assert met == {True, False}


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    entries = []
    for name in ("p1_0", "p1_1", "p2_0", "p2_1"):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.png").write_bytes(name.encode())
        entries.append({"image": f"images/{name}.png", "label": f"masks/{name}.png"})
    lists = {"training": entries[:2], "validation": entries[2:3], "test": entries[3:]}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    with pytest.raises(DataError, match="too few patients"):
        splits.write(tmp_path / "out", {"a": DataParams(str(tmp_path))}, [1])


def test_a_pattern_tells_the_patients_of_every_split(tmp_path: Path) -> None:
    """Names that alone would tell another patient: the scanner stands in front."""
    data = tmp_path / "site"
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
        for patient in range(12):
            for scanner in ("a", "b"):
                (data / folder / f"{scanner}{patient:02d}-{patient + 40}.png").write_bytes(
                    f"{scanner}{patient}".encode()
                )
    source = DataParams(str(data), patient_pattern=r"[ab](\d+)-.*")
    without = load_cases(DataParams(str(data)), "site")
    assert len(crossing(own_patients(without, source))) > 0, "the pattern would make no difference"
    splits.write(tmp_path, {"site": source}, [0, 1, 2])
    for number in range(3):
        drawn = load_cases(DataParams(str(splits.folder_of(tmp_path, number, "site"))), "site")
        assert {c.patient for _, c in drawn} == {f"{p:02d}" for p in range(12)}
        assert crossing(drawn) == []
        own = load_cases(source, "site")
        same = all({c.id for c in drawn.of(name)} == {c.id for c in own.of(name)} for name in SPLITS)
        assert same is (number == 0)


def own_patients(drawn: Splits, source: DataParams) -> Splits:
    """The same division, its patients by the pattern."""
    told = {c.id: c.patient for _, c in load_cases(source, "site")}
    return Splits(*(tuple(replace(c, patient=told[c.id]) for c in drawn.of(name)) for name in SPLITS))
