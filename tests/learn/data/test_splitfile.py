"""Which patient is in which split: exact shares, kept in a file, that a person may write."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.errors import DataError
from gossipseg.learn.commands import check
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.data.datalist import load_cases, scan_cases
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.data.division import crossing, shares
from gossipseg.learn.data.lists.listing import Listing
from gossipseg.learn.data.olddraw import old_division
from gossipseg.learn.data.splitfile import FILE, Keep, divide, write_division
from gossipseg.learn.data.trained_cases import TrainedCases
from gossipseg.learn.params import DataParams
from tests.learn.imagery import GREY, blob, spec, write_list, write_png


def folder(root: Path, *names: str) -> Path:
    """Images of different bytes, none of which can be read."""
    for name in names:
        for kind in ("images", "masks"):
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{kind} {name}".encode())
    return root


def patients(count: int, first: int = 0) -> list[str]:
    return [f"pat{i:02d}" for i in range(first, first + count)]


class Site:
    """A site whose division is kept."""

    def __init__(self, root: Path, seed: int = 7, **data: Any) -> None:
        self.root, self.keep, self.data = root, Keep(root / "state", seed), data

    def load(self, warn: Callable[[str], None] = lambda text: None) -> Splits:
        problems: list[DataError] = []
        data = DataParams(str(self.root), **self.data)
        splits = scan_cases(data, "north", problems.append, keep=self.keep, warn=warn)
        if problems:
            raise problems[0]
        return splits

    def start(self) -> dict[str, str]:
        """As a worker does: the division is kept. Case → split."""
        splits = self.load()
        write_division(splits)
        return where(splits)

    def write(self, document: Any) -> None:
        self.keep.state_dir.mkdir(exist_ok=True)
        self.keep.file.write_text(document if isinstance(document, str) else json.dumps(document))

    def read(self) -> Any:
        return json.loads(self.keep.file.read_text())

    def train(self, version_02: bool = False) -> None:
        """A checkpoint, and what was trained on."""
        (self.keep.state_dir / "checkpoint").mkdir(parents=True)
        (self.keep.state_dir / "checkpoint" / "round-3.pt").write_bytes(b"")
        if not version_02:
            TrainedCases(self.keep.state_dir, self.load_without_file()).note()

    def load_without_file(self) -> Splits:
        return load_cases(DataParams(str(self.root), **self.data), "north")


def where(splits: Splits) -> dict[str, str]:
    return {case.id: split for split, case in splits}


def counts(found: dict[str, str]) -> list[int]:
    return [list(found.values()).count(split) for split in SPLITS]


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        (3, [1, 1, 1]),
        (4, [2, 1, 1]),
        (6, [4, 1, 1]),
        (9, [6, 1, 2]),
        (10, [5, 3, 2]),
        (12, [7, 3, 2]),
        (20, [13, 3, 4]),
        (100, [65, 15, 20]),
    ],
)
def test_shares_by_largest_remainder_with_three_to_validate_where_there_are_enough(
    patients: int, expected: list[int]
) -> None:
    found = shares(patients, 0.2, 0.15, SPLITS)
    assert [found[split] for split in SPLITS] == expected


@given(st.integers(3, 300), st.floats(0.01, 0.5), st.floats(0.01, 0.4))
def test_shares_are_whole_and_no_split_is_empty(patients: int, test: float, validation: float) -> None:
    found = shares(patients, test, validation, SPLITS)
    assert sum(found.values()) == patients and min(found.values()) >= 1
    exact = {"test": patients * test, "validation": patients * validation}
    for split in ("test", "validation"):
        assert abs(found[split] - exact[split]) < 1 or found[split] in (1, 3)


@given(st.sets(st.tuples(st.integers(1, 30), st.integers(0, 9)), min_size=40, max_size=120), st.integers())
def test_whatever_the_seed_no_patient_is_in_two(found: set[tuple[int, int]], seed: int) -> None:
    cases = tuple(Case(f"s{p:02d}_{k}", Path(f"s{p:02d}_{k}")) for p, k in sorted(found))
    splits = divide(
        Listing(Path("x"), undivided=cases, into=SPLITS), DataParams("x"), "n", None, pytest.fail, print
    )
    assert sorted(where(splits)) == sorted(case.id for case in cases)
    assert crossing(splits) == [] and all(splits.counts.values())


def test_twelve_patients_come_out_as_seven_three_two(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(12)))
    assert counts(site.start()) == [7, 3, 2]


def test_shares_count_patients_not_cases(tmp_path: Path) -> None:
    names = [f"pat{i:02d}_{k}" for i in range(10) for k in range(1 + 5 * (i == 0))]
    found = Site(folder(tmp_path, *names)).start()
    people = {split: {n[:5] for n, s in found.items() if s == split} for split in SPLITS}
    assert [len(people[split]) for split in SPLITS] == [5, 3, 2]


def test_the_seed_and_the_site_draw(tmp_path: Path) -> None:
    folder(tmp_path, *patients(20))
    drawn = [where(Site(tmp_path, seed).load()) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    other = load_cases(DataParams(str(tmp_path)), "south", keep=Keep(tmp_path / "state", 1))
    assert where(other) != drawn[0]


def test_without_a_test_share_two_patients_are_enough(tmp_path: Path) -> None:
    folder(tmp_path, "pat1", "pat2")
    assert counts(Site(tmp_path, test_fraction=0.0).start()) == [1, 1, 0]
    with pytest.raises(DataError) as caught:
        Site(tmp_path / ".", seed=1).load_without_file()
    text = str(caught.value)
    assert "2 patients in 2 cases (pat1, pat2)" in text and "test_fraction: 0" in text, text
    assert "data.patient_pattern" in caught.value.remedy


# ---------------------------------------------------------------- kept


def test_the_file_is_readable_by_people_and_by_nobody_else(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(5)))
    found = site.start()
    assert stat.S_IMODE(site.keep.file.stat().st_mode) == 0o600
    document = site.read()
    assert (document["schema"], document["made"]) == (1, "drawn")
    assert {name: split for split in SPLITS for name in document[split]} == found
    assert len(site.keep.file.read_text().splitlines()) > 5, "a line for each case"


def test_reading_writes_nothing(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(5)))
    site.load()
    assert not site.keep.state_dir.exists()


@pytest.mark.parametrize("more", [1, 4, 30])
def test_an_old_patient_never_moves_and_new_ones_fill_what_lacks(tmp_path: Path, more: int) -> None:
    site = Site(folder(tmp_path, *patients(10)))
    before = site.start()
    for name in patients(more, 10):
        folder(tmp_path, name)
        after = site.start()
        assert before.items() <= after.items()
        before = after
    wanted = shares(10 + more, 0.2, 0.15, SPLITS)
    assert all(abs(got - wanted[s]) <= 1 for got, s in zip(counts(before), SPLITS, strict=True)), before
    site.keep = Keep(site.keep.state_dir, 99)
    assert site.start() == before, "another seed draws nobody anew"


def test_a_new_case_goes_where_its_patient_is(tmp_path: Path) -> None:
    names = [f"{patient}_1" for patient in patients(12)]
    site = Site(folder(tmp_path, *names))
    before = site.start()
    after = Site(folder(tmp_path, *(f"{patient}_2" for patient in patients(12)))).start()
    assert all(after[name.replace("_1", "_2")] == split for name, split in before.items())


@pytest.mark.parametrize("written", [True, False])
def test_a_new_case_of_a_test_patient_is_test_even_without_a_share_of_it(
    tmp_path: Path, written: bool
) -> None:
    names = [f"a{i}_1" for i in range(8)]
    site = Site(folder(tmp_path, *names))
    if written:
        site.write({"training": names[:5], "validation": names[5:6], "test": names[6:]})
    tested = [name for name, split in site.start().items() if split == "test"]
    site.data = {"test_fraction": 0.0}
    folder(tmp_path, *(name.replace("_1", "_2") for name in names))
    found = site.start()
    assert [found[name.replace("_1", "_2")] for name in tested] == ["test"] * len(tested)
    assert all(found[name] == found[name.replace("_1", "_2")] for name in names)
    assert site.start() == found


def test_a_patient_that_vanished_returns_to_its_split(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(12)))
    before = site.start()
    gone = next(name for name, split in before.items() if split == "validation")
    for kind in ("images", "masks"):
        (tmp_path / kind / f"{gone}.png").unlink()
    told: list[str] = []
    site.load(told.append)
    assert any(gone in text and FILE in text for text in told)
    folder(tmp_path, "pat50")
    site.start()
    folder(tmp_path, gone)
    assert site.start()[gone] == "validation"


def test_a_share_of_a_lists_training_is_kept_too(tmp_path: Path) -> None:
    folder(tmp_path, *patients(14))
    entries = [{"image": f"images/{n}.png", "label": f"masks/{n}.png"} for n in patients(14)]
    write_list(tmp_path, {"training": entries[:8], "test": entries[12:]})
    site = Site(tmp_path)
    before = site.start()
    assert counts(before) == [5, 3, 0 + 2] and before["pat12"] == "test"
    write_list(tmp_path, {"training": entries[:12], "test": entries[12:]})
    assert before.items() <= site.start().items()
    assert "test as dataset.json says" in site.load().origin.text


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '"x"', '{"training": "pat01"}', '{"training": [1]}', "{}", '{"made": 7, "training": []}'],
)
def test_a_file_that_cannot_be_used_is_named_and_never_replaced(tmp_path: Path, content: str) -> None:
    site = Site(folder(tmp_path, *patients(5)))
    site.write(content)
    with pytest.raises(DataError) as caught:
        site.start()
    assert str(site.keep.file) in str(caught.value) and caught.value.remedy
    assert site.keep.file.read_text() == content


def test_a_file_lost_beside_a_checkpoint_is_never_drawn_anew(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(12)))
    site.start()
    site.train()
    site.start()
    site.keep.file.unlink()
    with pytest.raises(DataError, match="missing beside a checkpoint") as caught:
        site.start()
    assert not site.keep.file.exists()
    assert all(
        w in caught.value.remedy for w in ("backup", "trained-on.json", "empty state_dir", '"training"')
    )


def in_folders(root: Path, *names: str) -> Path:
    """A site with a list whose images lie in folders: names as P01/scan."""
    for name in names:
        for suffix in ("", "_mask"):
            path = root / f"{name}{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name}{suffix}".encode())
    write_list(root, {"training": [{"image": f"{n}.png", "label": f"{n}_mask.png"} for n in names]})
    return root


def test_a_case_keeps_its_split_where_another_makes_its_name_longer(tmp_path: Path) -> None:
    """New scans of another year: the names of all cases have their year from now on."""
    old = [f"2023/P{i:02d}/scan" for i in range(8)]
    site = Site(in_folders(tmp_path, *old))
    before = site.start()
    site.train()
    assert before.keys() == {f"P{i:02d}_scan" for i in range(8)}
    in_folders(tmp_path, *old, "2024/P90/scan", "2024/P91/scan", "2025/P91/scan")
    after = site.start()
    assert {f"2023_{name}": split for name, split in before.items()}.items() <= after.items()
    assert len(after) == 11 and site.start() == after


def test_two_images_that_may_be_the_one_of_the_file_are_refused(tmp_path: Path) -> None:
    """Slices of new patients may have the numbers of old images: they are not sown over the splits."""
    site = Site(in_folders(tmp_path, *[f"scans/{i:03d}" for i in range(8)]))
    site.start()
    in_folders(tmp_path, *[f"scans/{i:03d}" for i in range(8)], "P21/003", "P21/004")
    with pytest.raises(DataError, match=r"003'?: several images have this name now: scans_003, P21_003"):
        site.start()


def test_names_in_the_letters_of_another_system_are_kept(tmp_path: Path) -> None:
    """As a Mac writes them."""
    nfd = "Scha\u0308del"
    site = Site(in_folders(tmp_path, *[f"2023/P{i:02d}/{nfd}" for i in range(8)]))
    before = site.start()
    in_folders(tmp_path, *[f"2023/P{i:02d}/{nfd}" for i in range(8)], f"2024/P90/{nfd}", f"2025/P90/{nfd}")
    after = site.start()
    assert {f"2023_{name}": split for name, split in before.items()}.items() <= after.items()


def test_images_that_were_all_moved_are_not_divided_anew_beside_a_checkpoint(tmp_path: Path) -> None:
    site = Site(in_folders(tmp_path, *[f"P{i:02d}/scan" for i in range(8)]))
    site.start()
    in_folders(tmp_path, *[f"Q{i:02d}/scan" for i in range(8)])
    site.load()  # nothing was trained
    site.train()
    with pytest.raises(DataError, match=r"splits\.json: names none of the 8 cases.*beside a checkpoint"):
        site.start()


def test_a_site_of_version_02_goes_on_with_its_division(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(12)))
    site.train(version_02=True)
    with pytest.raises(DataError, match="missing beside a checkpoint"):
        site.start()
    cases = tuple(case for _, case in site.load_without_file())
    listing = Listing(tmp_path, undivided=cases, into=SPLITS)
    old = old_division(listing, DataParams(str(tmp_path)), {c.id for c in cases}) or {}
    assert not old, "not what was trained on"
    trained = ["pat00", "pat01", "pat02", "pat03", "pat04", "pat05", "pat06", "pat07", "pat08", "pat09"]
    for name in list(trained):
        if old_division(listing, DataParams(str(tmp_path)), {name}) is None:
            trained.remove(name)
    (site.keep.state_dir / "trained-on.json").write_text(json.dumps({"schema": 1, "cases": trained}))
    found = site.start()
    assert all(found[name] == "training" for name in trained)
    assert found == old_division(listing, DataParams(str(tmp_path)), set(trained))
    assert "0.2" in site.read()["note"]
    TrainedCases(site.keep.state_dir, site.load()).note()
    site.keep.file.unlink()
    with pytest.raises(DataError, match="missing beside a checkpoint"):
        site.start()


def test_the_old_draw_was_this_one(tmp_path: Path) -> None:
    """Recorded with version 0.2: it must never change."""
    cases = tuple(Case(f"case{i}", Path(f"{i}.png")) for i in range(12))
    found = old_division(Listing(tmp_path, undivided=cases, into=SPLITS), DataParams("x"), {"case3"})
    assert found is not None
    drawn = {split: {int(n[4:]) for n, s in found.items() if s == split} for split in SPLITS}
    assert drawn == {"training": {3, 4, 6, 7, 9}, "validation": {0, 1}, "test": {2, 5, 8, 10, 11}}


# ---------------------------------------------------------------- written by hand


def by_hand(names: list[str], **more: Any) -> dict[str, Any]:
    return {"training": names[:3], "validation": names[3:5], "test": names[5:], **more}


@pytest.mark.parametrize("made", [{}, {"made": "by hand", "schema": 1, "comment": "by Ann"}])
def test_a_file_written_beforehand_is_followed(tmp_path: Path, made: dict[str, Any]) -> None:
    names = patients(6)
    site = Site(folder(tmp_path, *names))
    site.write(by_hand(names, **made))
    assert where(site.load()) == dict(
        zip(names, [*["training"] * 3, *["validation"] * 2, "test"], strict=True)
    )
    assert site.load().origin.how == "by hand"
    text = site.keep.file.read_text()
    site.start()
    assert site.keep.file.read_text() == text, "it says all there is to say"
    folder(tmp_path, "pat40")
    site.start()
    grown = site.read()
    assert [grown.pop(s)[: len(by_hand(names)[s])] for s in SPLITS] == [by_hand(names)[s] for s in SPLITS]
    assert grown == made, "nothing else is touched"
    assert "pat40" in site.keep.file.read_text()


def test_nnunets_own_form_is_read_fold_by_fold(tmp_path: Path) -> None:
    names = patients(6)
    site = Site(folder(tmp_path, *names), fold=1)
    folds = [{"train": names[1:], "val": names[:1]}, {"train": names[:3], "val": names[3:]}]
    site.write(folds)
    assert counts(where(site.load())) == [3, 3, 0]
    folder(tmp_path, "pat40")
    found = site.start()
    assert site.read()[0] == folds[0] and site.read()[1]["train"] == folds[1]["train"]
    assert site.read()[1][{"training": "train", "validation": "val"}.get(found["pat40"], found["pat40"])]
    assert site.start() == found
    site.data = {"fold": 2}
    with pytest.raises(DataError, match=r"data.fold = 2: has 2 folds"):
        site.load()


def test_cases_may_be_named_by_their_files(tmp_path: Path) -> None:
    names = patients(6)
    site = Site(folder(tmp_path, *names))
    site.write(by_hand([f"{name}.png" for name in names]))
    assert counts(site.start()) == [3, 2, 1]


def _twice(names: list[str]) -> dict[str, Any]:
    return by_hand(names) | {"test": [names[5], names[0]]}


def _twice_by_its_file(names: list[str]) -> dict[str, Any]:
    return by_hand(names) | {"test": [names[5], f"{names[0]}.png"]}


def _misspelt(names: list[str]) -> dict[str, Any]:
    return {**by_hand(names), "test": [], "tests": [names[5]]}


def _one_patient_in_two(names: list[str]) -> dict[str, Any]:
    return {"training": [names[0]], "validation": [names[1]], "test": names[2:]}


def _nobody(names: list[str]) -> dict[str, Any]:
    return by_hand(names) | {"validation": ["x1", "x2"]}


@pytest.mark.parametrize(
    ("damage", "names", "words"),
    [
        (_twice, patients(6), ["test = 'pat00'", "in training, too"]),
        (_twice_by_its_file, patients(6), ["test = 'pat00'", "in training, too"]),
        (_misspelt, patients(6), ["tests: is no split, and names cases (pat05)", "test."]),
        (
            _one_patient_in_two,
            ["a1_1", "a1_2", "a2_1", "a3_1"],
            ["'a1_2'", "patient a1 has a1_1 in training"],
        ),
        (_nobody, patients(6), ["validation", "none of these cases is here", "pat00"]),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, damage: Callable[[list[str]], Any], names: list[str], words: list[str]
) -> None:
    site = Site(folder(tmp_path, *names))
    site.write(damage(names))
    with pytest.raises(DataError) as caught:
        site.start()
    assert all(word in str(caught.value) for word in [str(site.keep.file), *words]), str(caught.value)
    assert caught.value.remedy


def test_a_list_that_comes_later_and_goes_again(tmp_path: Path) -> None:
    names = patients(10)
    site = Site(folder(tmp_path, *names))
    drawn = site.start()
    tested = [name for name in names if drawn[name] == "test"]
    others = [name for name in names if drawn[name] == "training"][:2]
    entries = {name: {"image": f"images/{name}.png", "label": f"masks/{name}.png"} for name in names}
    write_list(
        tmp_path,
        {
            "training": [entries[name] for name in names if name not in others],
            "test": [entries[name] for name in others],
        },
    )
    found = site.start()
    assert {found[name] for name in tested} <= {"training", "validation"}
    assert site.start() == found, "the file names each case once"
    (tmp_path / "dataset.json").unlink()
    again = site.start()
    assert {name: again[name] for name in names if name not in others} == {
        name: found[name] for name in names if name not in others
    }


def test_patients_that_are_told_after_the_draw_are_told_of_the_file(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *(f"s{i}_1" for i in range(6))))
    site.start()
    site.data = {"patient_pattern": "(s)"}
    with pytest.raises(DataError, match=r"splits.json: patient = 's': has images in both") as caught:
        site.load()
    assert "of the lists" not in caught.value.remedy


def test_a_checkpoint_that_cannot_be_looked_for_counts_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(folder(tmp_path, *patients(6)))
    looked = Path.iterdir

    def refuse(folder: Path) -> Any:
        if folder.name == "checkpoint":
            raise PermissionError(13, "Permission denied", str(folder))
        return looked(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="is missing beside a checkpoint"):
        site.start()


def test_a_link_whose_file_is_away_is_no_lost_file(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(6)))
    site.keep.state_dir.mkdir()
    site.keep.file.symlink_to(tmp_path / "away" / "splits.json")
    with pytest.raises(DataError, match=r"splits.json: cannot be read: No such file"):
        site.start()
    assert site.keep.file.is_symlink()


def test_a_split_that_was_left_empty_by_hand_is_told_of_this_file(tmp_path: Path) -> None:
    site = Site(folder(tmp_path, *patients(6)))
    site.write({"training": patients(5), "validation": [], "test": patients(1, 5)})
    with pytest.raises(DataError, match=r"splits.json: validation: this split is empty") as caught:
        site.load()
    assert "a share of training" not in caught.value.remedy


@pytest.mark.parametrize("validates", [True, False])
def test_the_list_goes_before_the_file_and_must_not_be_contradicted(tmp_path: Path, validates: bool) -> None:
    names = patients(6)
    folder(tmp_path, *names)
    entries = [{"image": f"images/{n}.png", "label": f"masks/{n}.png"} for n in names]
    lists = {"training": entries[:4], "validation": entries[4:5], "test": entries[5:]}
    if not validates:
        lists = {"training": entries[:5], "test": entries[5:]}
    write_list(tmp_path, lists)
    site = Site(tmp_path)
    site.write({"training": names[:4], "validation": names[4:5], "test": names[5:]})
    assert site.load().origin.how == ("list" if validates else "by hand")
    assert counts(site.start()) == [4, 1, 1]
    for wrong, split in ((names[0], "test"), (names[5], "training")):
        document = {"training": names[1:4], "validation": names[4:5], "test": []}
        site.write(document | {split: [*document[split], wrong]})
        with pytest.raises(DataError, match=f"{split} = '{wrong}': .*dataset.json has this case in"):
            site.load()


def test_a_list_that_comes_later_goes_before_a_drawn_file(tmp_path: Path) -> None:
    names = patients(6)
    site = Site(folder(tmp_path, *names))
    site.start()
    entries = [{"image": f"images/{n}.png", "label": f"masks/{n}.png"} for n in names]
    write_list(tmp_path, {"training": entries[2:], "validation": entries[:1], "test": entries[1:2]})
    told: list[str] = []
    splits = site.load(told.append)
    assert counts(where(splits)) == [4, 1, 1] and splits.origin.how == "list"
    assert any("the list is followed" in text for text in told)


# ---------------------------------------------------------------- worker and check


def real_site(root: Path, count: int) -> Path:
    for i in range(count):
        image, label = blob((40, 36), i)
        write_png(root / "images" / f"pat{i:02d}.png", image)
        write_png(root / "masks" / f"pat{i:02d}.png", label)
    return root


def test_the_worker_keeps_it_and_check_only_shows_it(tmp_path: Path) -> None:
    made = spec(real_site(tmp_path, 5), GREY)
    file = Path(made.state_dir) / FILE
    found = check.check(made)
    assert found["division"]["how"] == "drawn" and f"to be kept in {file}" in found["division"]["text"]
    assert not Path(made.state_dir).exists()
    splits = Dataset.open(made).splits
    assert splits.origin.text == f"drawn from the seed, kept in {file}"
    kept = json.loads(file.read_text())
    assert {s: [c.id for c in splits.of(s)] for s in SPLITS} == {s: kept[s] for s in SPLITS}
    assert f", kept in {file}" in check.check(made)["division"]["text"]
    assert found["kinds"] == {".png": 5}


def test_check_looks_at_every_case_that_cannot_be_divided(tmp_path: Path) -> None:
    made = spec(real_site(tmp_path, 5), GREY)
    (tmp_path / "images" / "pat03.png").write_bytes(b"no picture")
    Path(made.state_dir).mkdir()
    (Path(made.state_dir) / FILE).write_text("{")
    told = [problem["file"] for problem in check.check(made)["problems"]]
    assert told == [str(Path(made.state_dir) / FILE), str(tmp_path / "images" / "pat03.png")]


def test_nothing_is_kept_of_data_that_cannot_be_read(tmp_path: Path) -> None:
    made = spec(real_site(tmp_path, 5), GREY)
    (tmp_path / "images" / "pat03.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        Dataset.open(made)
    assert not (Path(made.state_dir) / FILE).exists()
