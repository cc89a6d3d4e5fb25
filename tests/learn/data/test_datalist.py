"""Data lists and folders: which case is where, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.datalist import load_cases, scan_cases
from gossipseg.learn.params import DataParams
from tests.learn.imagery import png_site, write_list


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def load(root: Path, **changes: Any) -> Any:
    return load_cases(DataParams(str(root), **changes), "north")


def entry(name: str) -> dict[str, str]:
    return {"image": f"images/{name}.png", "label": f"masks/{name}.png"}


def test_a_decathlon_list_gives_the_cases_in_its_order(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 3, "validation": 1, "test": 2})
    splits = load(tmp_path)
    assert splits.counts == {"training": 3, "validation": 1, "test": 2}
    assert [c.id for c in splits.training] == ["training_0", "training_1", "training_2"]
    assert splits.training[0].image == tmp_path / "images/training_0.png"
    assert splits.training[0].label == tmp_path / "masks/training_0.png"


def test_test_entries_may_be_plain_strings_without_labels(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1})
    touch(tmp_path, "images/x.nii.gz")
    lists = {
        "training": [entry("training_0")],
        "validation": [entry("validation_0")],
        "test": ["./images/x.nii.gz"],
    }
    write_list(tmp_path, lists)
    assert load(tmp_path).test == (Case("x", tmp_path / "images/x.nii.gz", None),)


def test_without_the_key_validation_a_share_of_training_is_used(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/c{i}.png" for i in range(20) for kind in ("images", "masks")))
    write_list(tmp_path, {"training": [entry(f"c{i}") for i in range(20)]})
    splits = load(tmp_path)
    assert splits.counts["validation"] >= 1
    assert splits.counts["training"] + splits.counts["validation"] == 20


def test_several_images_of_one_case_are_its_channels(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1})
    touch(tmp_path, "images/t1.nii.gz", "images/t2.nii.gz", "masks/t.nii.gz")
    both = {"image": ["images/t1.nii.gz", "images/t2.nii.gz"], "label": "masks/t.nii.gz"}
    write_list(tmp_path, {"training": [both], "validation": [entry("validation_0")]})
    assert load(tmp_path).training[0].files == (tmp_path / "images/t1.nii.gz", tmp_path / "images/t2.nii.gz")


def test_the_same_stem_in_two_folders_gives_two_ids(tmp_path: Path) -> None:
    touch(tmp_path, "a/scan.png", "b/scan.png", "am.png", "bm.png")
    lists = {
        "training": [{"image": "a/scan.png", "label": "am.png"}],
        "validation": [{"image": "b/scan.png", "label": "bm.png"}],
    }
    write_list(tmp_path, lists)
    splits = load(tmp_path)
    assert (splits.training[0].id, splits.validation[0].id) == ("a_scan", "b_scan")


def _missing_file(root: Path) -> None:
    (root / "masks/training_1.png").unlink()


def _no_label(root: Path) -> None:
    write_list(root, {"training": ["images/training_0.png"], "validation": [entry("validation_0")]})


def _two_splits(root: Path) -> None:
    write_list(root, {"training": [entry("training_0")], "validation": [entry("training_0")]})


def _twice(root: Path) -> None:
    write_list(root, {"training": [entry("training_0")] * 2, "validation": [entry("validation_0")]})


def _empty(root: Path) -> None:
    write_list(root, {"training": [entry("training_0")], "validation": []})


def _not_json(root: Path) -> None:
    (root / "dataset.json").write_text('{"training": [')


def _not_a_list(root: Path) -> None:
    write_list(root, {"training": {"image": "x"}})


def _not_a_case(root: Path) -> None:
    write_list(root, {"training": [{"picture": "x.png"}], "validation": [entry("validation_0")]})


def _no_training(root: Path) -> None:
    write_list(root, {"cases": []})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            _missing_file,
            ["masks/training_1.png", "training, case training_1", "no such file", "dataset.json"],
        ),
        (_no_label, ["dataset.json", "training.0.label", "no label", "images/training_0.png"]),
        (_two_splits, ["dataset.json", "'training_0'", "both training and validation"]),
        (_twice, ["'training_0'", "listed twice in training"]),
        (_empty, ["dataset.json", "validation", "empty", "At least one"]),
        (_not_json, ["dataset.json", "not valid JSON", "line 1"]),
        (_not_a_list, ["training", "must be a list"]),
        (_not_a_case, ["training.0", "picture", '"image"']),
        (_no_training, ["dataset.json", "training", "no such key"]),
    ],
)
def test_a_bad_list_is_refused_in_one_paragraph(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    png_site(tmp_path, {"training": 2, "validation": 1})
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text and text.endswith((".", "]}."))


def test_a_missing_folder_names_the_key_of_site_yaml(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path.*site\.yaml"):
        load(tmp_path / "nowhere")


def test_all_problems_are_found_not_only_the_first(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 3, "validation": 1})
    (tmp_path / "images/training_0.png").unlink()
    (tmp_path / "masks/training_2.png").unlink()
    (tmp_path / "masks/validation_0.png").unlink()
    problems: list[DataError] = []
    scan_cases(DataParams(str(tmp_path)), "north", problems.append)
    assert len(problems) == 3


# ---------------------------------------------------------------- folders


def test_folders_are_matched_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    for i in range(10):
        touch(tmp_path, f"images/c{i}.jpg", f"labels/c{i}.png")
    touch(tmp_path, "images/.DS_Store", "images/notes.txt")
    splits = load(tmp_path)
    assert sum(splits.counts.values()) == 10 and all(splits.counts.values())
    assert {c.label.name for _, c in splits if c.label} == {f"c{i}.png" for i in range(10)}


def test_a_folder_of_slices_is_one_image(tmp_path: Path) -> None:
    for i in range(5):
        touch(tmp_path, f"images/scan{i}/0.dcm", f"labels/scan{i}.nii.gz")
    assert {c.id for _, c in load(tmp_path)} == {f"scan{i}" for i in range(5)}


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_an_image_without_label_or_a_label_without_image_is_refused(tmp_path: Path, kind: str) -> None:
    for i in range(5):
        touch(tmp_path, f"images/c{i}.png", f"masks/c{i}.png")
    touch(tmp_path, f"{kind}/odd.png")
    with pytest.raises(DataError, match=rf"{kind}/odd\.png.*has no (label|image)"):
        load(tmp_path)


def test_no_list_and_no_folders_says_what_is_expected(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/a.png")
    with pytest.raises(DataError, match=r"neither dataset\.json nor images/.*Found pictures"):
        load(tmp_path)


def test_labels_may_be_lacking_where_none_are_needed(tmp_path: Path) -> None:
    touch(tmp_path / "list", "images/a.png", "images/b.png", "masks/b.png")
    write_list(tmp_path / "list", {"training": [{"image": "images/a.png"}], "validation": [entry("b")]})
    splits = load_cases(DataParams(str(tmp_path / "list")), "north", needs_labels=False)
    assert [case.label for case in splits.training] == [None]
    assert splits.validation[0].label == tmp_path / "list" / "masks/b.png"
    with pytest.raises(DataError, match="no label"):
        load(tmp_path / "list")


def test_folders_without_labels_or_with_some(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/c{i}.png" for i in range(9)))
    data = DataParams(str(tmp_path))
    assert sum(load_cases(data, "north", needs_labels=False).counts.values()) == 9
    with pytest.raises(DataError, match="masks"):
        load(tmp_path)
    touch(tmp_path, "masks/c3.png")
    splits = load_cases(data, "north", needs_labels=False)
    assert {case.id for _, case in splits if case.label} == {"c3"}
    touch(tmp_path, "masks/stray.png")
    with pytest.raises(DataError, match="no image"):
        load_cases(data, "north", needs_labels=False)


def test_reading_the_list_needs_no_torch() -> None:
    code = (
        "import sys, gossipseg.learn.data.datalist; assert not {'torch', 'numpy', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
