"""Every form of list: nnU-Net folders, tables, folds, encodings, and nothing skipped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import SPLITS, Splits
from gossipseg.learn.data.datalist import scan_cases
from gossipseg.learn.params import DataParams
from tests.learn.imagery import write_list


def touch(root: Path, *names: str) -> Path:
    """Files of different bytes."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="replace"))
    return root


def scan(root: Path, **data: Any) -> tuple[Splits, list[DataError], list[str]]:
    problems: list[DataError] = []
    told: list[str] = []
    splits = scan_cases(DataParams(str(root), **data), "north", problems.append, warn=told.append)
    return splits, problems, told


def load(root: Path, **data: Any) -> dict[str, list[str]]:
    splits, problems, _ = scan(root, **data)
    assert problems == []
    return {split: [case.id for case in splits.of(split)] for split in SPLITS}


def all_of(splits: dict[str, list[str]]) -> list[str]:
    return [case for cases in splits.values() for case in cases]


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"image": f"images/{name}.png", "label": f"masks/{name}.png", **more}


def pairs(root: Path, *names: str) -> Path:
    return touch(root, *(f"{kind}/{name}.png" for name in names for kind in ("images", "masks")))


# ---------------------------------------------------------------- nnU-Net


def nnunet(root: Path, cases: int, channels: int = 1, test: int = 0, labelled: bool = True) -> Path:
    for i in range(cases):
        touch(root, f"labelsTr/c_{i:03d}.nii.gz")
        touch(root, *(f"imagesTr/c_{i:03d}_{k:04d}.nii.gz" for k in range(channels)))
    for i in range(100, 100 + test):
        touch(root, *(f"imagesTs/c_{i:03d}_{k:04d}.nii.gz" for k in range(channels)))
        if labelled:
            touch(root, f"labelsTs/c_{i:03d}.nii.gz")
    names = {str(k): f"MR{k}" for k in range(channels)}
    about = {"channel_names": names, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(about))
    return root


@pytest.mark.parametrize("described", [True, False])
def test_folders_of_nnunet_with_channels_in_their_order(tmp_path: Path, described: bool) -> None:
    nnunet(tmp_path, 12, channels=2)
    if not described:
        (tmp_path / "dataset.json").unlink()
    splits, problems, _ = scan(tmp_path)
    assert problems == [] and list(splits.counts.values()) == [7, 3, 2]
    case = next(case for _, case in splits if case.id == "c_003")
    assert case.files == tuple(tmp_path / f"imagesTr/c_003_000{k}.nii.gz" for k in (0, 1))
    assert case.label == tmp_path / "labelsTr/c_003.nii.gz"


@pytest.mark.parametrize("labelled", [True, False])
def test_images_ts_are_the_test(tmp_path: Path, labelled: bool) -> None:
    splits, problems, _ = scan(nnunet(tmp_path, 8, test=2, labelled=labelled))
    assert problems == [] and [c.id for c in splits.test] == ["c_100", "c_101"]
    assert all((c.label is not None) is labelled for c in splits.test)
    assert splits.counts["training"] + splits.counts["validation"] == 8


def test_splits_final_says_who_validates(tmp_path: Path) -> None:
    nnunet(tmp_path, 6)
    names = [f"c_{i:03d}" for i in range(6)]
    folds = [{"train": names[2:], "val": names[:2]}, {"train": names[:4], "val": names[4:]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    assert load(tmp_path) == {"training": names[2:], "validation": names[:2], "test": []}
    assert load(tmp_path, fold=1)["validation"] == names[4:]
    assert "fold 1 of splits_final.json" in scan(tmp_path, fold=1)[0].origin.text
    assert "data.fold" in str(scan(tmp_path, fold=2)[1][0])
    entries = [
        {"image": f"imagesTr/{n}_0000.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names
    ]  # the names of the list are those of files
    write_list(tmp_path, {"training": entries})
    assert load(tmp_path, fold=1)["validation"] == [f"{n}_0000" for n in names[4:]]
    write_list(tmp_path, {"training": entries[1:], "validation": entries[:1]})
    assert any("splits_final.json is not used" in text for text in scan(tmp_path)[2])


def test_cases_that_dataset_json_names_one_by_one(tmp_path: Path) -> None:
    touch(tmp_path, *(f"raw/{i}_{k}.nii.gz" for i in range(3) for k in ("t1", "t2", "seg")))
    cases = {
        f"p{i}": {"images": [f"raw/{i}_t1.nii.gz", f"raw/{i}_t2.nii.gz"], "label": f"raw/{i}_seg.nii.gz"}
        for i in range(3)
    }
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "a"}, "dataset": cases}))
    splits, problems, _ = scan(tmp_path)
    assert problems == [] and {case.id for _, case in splits} == {"p0", "p1", "p2"}
    assert all(len(case.files) == 2 for _, case in splits)


def test_a_list_of_nnunets_first_version_leaves_out_the_channel(tmp_path: Path) -> None:
    nnunet(tmp_path, 6, channels=2)
    write_list(
        tmp_path,
        {
            "training": [
                {"image": f"./imagesTr/c_{i:03d}.nii.gz", "label": f"./labelsTr/c_{i:03d}.nii.gz"}
                for i in range(6)
            ]
        },
    )
    splits, problems, _ = scan(tmp_path)
    assert problems == [] and all(len(case.files) == 2 for _, case in splits)


def _no_channel(root: Path) -> None:
    (root / "imagesTr/c_002_0001.nii.gz").unlink()


def _first_channel(root: Path) -> None:
    (root / "imagesTr/c_002_0000.nii.gz").unlink()


def _third_channel(root: Path) -> None:
    touch(root, "imagesTr/c_002_0002.nii.gz")


def _no_label(root: Path) -> None:
    (root / "labelsTr/c_002.nii.gz").unlink()


def _no_image(root: Path) -> None:
    touch(root, "labelsTr/c_009.nii.gz")


def _no_label_folder(root: Path) -> None:
    (root / "labelsTr").rename(root / "segmentations")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_channel, ["imagesTr/c_002_0001.nii.gz", "channel 1 of 2 is missing"]),
        (_first_channel, ["imagesTr/c_002_0000.nii.gz", "channel 0 of 2 is missing"]),
        (_third_channel, ["imagesTr/c_002_0002.nii.gz", "is channel 2, and there are 2"]),
        (_no_label, ["imagesTr/c_002_0000.nii.gz", "no label in labelsTr/"]),
        (_no_image, ["labelsTr/c_009.nii.gz", "no image in imagesTr/"]),
        (_no_label_folder, ["labelsTr", "no such folder"]),
    ],
)
def test_a_wrong_nnunet_folder_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(nnunet(tmp_path, 6, channels=2))
    problems = scan(tmp_path)[1]
    assert problems and all(word in str(problems[0]) for word in words), problems
    assert problems[0].remedy


# ---------------------------------------------------------------- tables


TABLE = "image,label,patient,split\n" + "".join(
    f"images/{n}.png,masks/{n}.png,{p},{s}\n"
    for n, p, s in (("a", 1, "training"), ("b", 1, "Train"), ("c", 2, "val"), ("d", 3, "test"))
)
DIVIDED = {"training": ["a", "b"], "validation": ["c"], "test": ["d"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.csv", TABLE.encode()),
        ("dataset.csv", TABLE.replace(",", ";").encode()),
        ("dataset.tsv", TABLE.replace(",", "\t").encode()),
        ("dataset.csv", b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode()),
        ("dataset.csv", TABLE.encode("utf-16")),
        ("dataset.csv", TABLE.encode("utf-16-be")),
        ("dataset.csv", TABLE.replace("/", "\\").replace("\n", "\r\n").encode("utf-16-le")),
        ("dataset.csv", TABLE.replace("image,label,patient", "Image, LABEL ,Patient").encode()),
        ("dataset.csv", TABLE.replace("label,", "mask,", 1).encode()),
        ("dataset.csv", b"sep=,\n" + TABLE.encode()),
        ("dataset.csv", TABLE.replace("images/a.png", '"./images/a.png"').encode() + b"\n,,,\n"),
    ],
)
def test_tables_as_spreadsheets_save_them(tmp_path: Path, name: str, content: bytes) -> None:
    pairs(tmp_path, *"abcd")
    (tmp_path / name).write_bytes(content)
    assert load(tmp_path) == DIVIDED
    assert scan(tmp_path)[0].training[0].patient == "1"


def table(root: Path, text: str) -> Path:
    (root / "dataset.csv").write_text(text)
    return root


def test_columns_that_are_not_read_are_told(tmp_path: Path) -> None:
    rows = TABLE.splitlines()
    wide = "\n".join([f"{rows[0]},age", *(f"{row},70" for row in rows[1:])])
    told = scan(table(pairs(tmp_path, *"abcd"), wide))[2]
    assert [text for text in told if "not read: age" in text]


def test_channels_in_columns_and_cases_without_a_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}{k}.png" for n in "abcdef" for k in ("_t1", "_t2", "_m")))
    rows = "".join(f"{n}_t2.png,{n}_m.png,{n}_t1.png\n" for n in "abcdef")
    splits, problems, _ = scan(table(tmp_path, f"image_1,label,image_0\n{rows}"))
    assert problems == [] and list(splits.counts.values()) == [4, 1, 1]
    assert splits.training[0].files[0].name.endswith("_t1.png")
    assert splits.origin.how == "drawn"


def test_folds_of_a_table(tmp_path: Path) -> None:
    rows = "".join(f"images/{n}.png,masks/{n}.png,{k % 3}\n" for k, n in enumerate("abcdef"))
    table(pairs(tmp_path, *"abcdef"), f"image,label,fold\n{rows}")
    assert load(tmp_path)["validation"] == ["a", "d"] and load(tmp_path, fold=2)["validation"] == ["c", "f"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["holds no cases", "image,label,patient,split"]),
        ("picture,label\na,b\n", ["has no column image", "picture"]),
        (TABLE.replace("Train", "trining"), ["line 3, split", "'trining'", "is no split"]),
        (TABLE.replace("masks/c.png", ""), ["line 4.label", "no label"]),
        (TABLE.replace("images/c.png", ""), ["line 4", "names no image"]),
        (TABLE.replace("images/c.png", "images/c, old.png"), ["line 4", "more cells"]),
        (TABLE.replace("3,test", "1,test"), ["patient", "'1'", "training and test"]),
        (TABLE.replace("label", "label,mask", 1), ["two columns"]),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    problems = scan(table(pairs(tmp_path, *"abcd"), text))[1]
    assert problems and all(word in str(problems[0]) for word in ["dataset.csv", *words]), problems
    assert problems[0].remedy


def test_two_lists_are_refused(tmp_path: Path) -> None:
    table(pairs(tmp_path, *"abcd"), TABLE)
    write_list(tmp_path, {"training": [entry("a")], "validation": [entry("b")]})
    assert "holds dataset.json and dataset.csv" in str(scan(tmp_path)[1][0])
    assert load(tmp_path, list="dataset.csv") == DIVIDED


# ---------------------------------------------------------------- folds, words and encodings of lists


def test_folds_beside_the_cases_of_a_list(tmp_path: Path) -> None:
    pairs(tmp_path, *"abcdef")
    folded = [entry(n, fold=k % 3) for k, n in enumerate("abcde")]
    write_list(tmp_path, {"training": folded, "testing": [{"image": "images/f.png"}]})
    assert load(tmp_path) == {"training": ["b", "c", "e"], "validation": ["a", "d"], "test": ["f"]}
    assert load(tmp_path, fold=2)["validation"] == ["c"]
    assert "fold 2 validates" in scan(tmp_path, fold=2)[0].origin.text


@pytest.mark.parametrize(
    ("lists", "fold", "words"),
    [
        ({"training": [entry("a", fold=0), entry("b", fold=1)]}, 3, ["data.fold = 3: no case is in", "0, 1"]),
        ({"training": [entry("a", fold=0), entry("b")]}, None, ["case b has no fold"]),
        ({"training": [entry("a", fold="x"), entry("b")]}, None, ["training.0.fold", "is no fold"]),
        ({"training": [entry("a"), entry("b")]}, 1, ["data.fold", "has no folds"]),
        ({"training": [entry("a", fold=0)], "validation": [entry("b")]}, 0, ["has a list `validation`"]),
        ({"training": [entry("a")], "train": [entry("b")]}, None, ["train", "another key for training"]),
        ({"training": [entry("a")], "val": [entry("b", patient="p")], "test": [entry("c", patient="p")]},
         None, ["patient", "validation and test"]),
    ],
)  # fmt: skip
def test_folds_and_keys_that_contradict_each_other(
    tmp_path: Path, lists: dict[str, Any], fold: int | None, words: list[str]
) -> None:
    write_list(pairs(tmp_path, *"abc"), lists)
    problems = scan(tmp_path, fold=fold)[1]
    assert problems and all(word in str(problems[0]) for word in words), problems
    assert problems[0].remedy


def test_other_words_for_the_splits(tmp_path: Path) -> None:
    write_list(pairs(tmp_path, *"abc"), {"train": [entry("a")], "val": [entry("b")], "testing": [entry("c")]})
    assert load(tmp_path) == {"training": ["a"], "validation": ["b"], "test": ["c"]}


def test_cases_under_a_key_that_is_not_read_are_told(tmp_path: Path) -> None:
    write_list(
        pairs(tmp_path, *"abc"), {"training": [entry("a")], "validation": [entry("b")], "x": [entry("c")]}
    )
    assert any("1 cases stand under x" in text for text in scan(tmp_path)[2])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lists_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    pairs(tmp_path, "ä", "b")
    text = json.dumps({"training": [entry("ä")], "validation": [entry("b")]}, ensure_ascii=False)
    (tmp_path / "dataset.json").write_bytes(text.replace(", ", ",\r\n").encode(encoding))
    assert load(tmp_path)["training"] == ["ä"]


def test_a_list_that_is_no_unicode_is_named(tmp_path: Path) -> None:
    pairs(tmp_path, "ä", "b")
    text = json.dumps({"training": [entry("ä")], "validation": [entry("b")]}, ensure_ascii=False)
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    problem = scan(tmp_path)[1][0]
    assert "no Unicode text" in str(problem) and "UTF-8" in problem.remedy


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"training": [], "training": []}')
    assert "training: stands twice" in str(scan(tmp_path)[1][0])


def test_paths_with_backslashes_a_dot_a_tilde_or_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pairs(tmp_path / "site", *"abcd")
    names = [".\\images\\a.png", "./images/b.png", "~/site/images/c.png", str(tmp_path / "site/images/d.png")]
    entries = [{"image": n, "label": f"masks\\{i}.png"} for n, i in zip(names, "abcd", strict=True)]
    write_list(tmp_path / "site", {"training": entries[:3], "validation": entries[3:]})
    assert load(tmp_path / "site") == {"training": ["a", "b", "c"], "validation": ["d"], "test": []}


def test_one_name_with_two_suffixes_is_two_cases(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.nii.gz", "m1.png", "m2.png")
    entries = [{"image": "a.png", "label": "m1.png"}, {"image": "a.nii.gz", "label": "m2.png"}]
    write_list(tmp_path, {"training": entries[:1], "validation": entries[1:]})
    assert load(tmp_path) == {"training": ["a.png"], "validation": ["a.nii.gz"], "test": []}


# ---------------------------------------------------------------- the same image twice


def same_bytes(root: Path, one: str, other: str) -> None:
    content = bytes(range(256)) * 100
    for name in (one, other):
        (root / name).write_bytes(content)


def test_the_same_bytes_in_two_splits_are_refused(tmp_path: Path) -> None:
    pairs(tmp_path, *"abcd")
    lists = {"training": [entry("a"), entry("b")], "validation": [entry("c")], "test": [entry("d")]}
    write_list(tmp_path, lists)
    same_bytes(tmp_path, "masks/a.png", "masks/c.png")
    assert scan(tmp_path)[1] == [], "two empty masks are no harm"
    same_bytes(tmp_path, "images/a.png", "images/c.png")
    (problem,) = scan(tmp_path)[1]
    assert "same bytes as case a of training" in str(problem) and problem.value == "c" and problem.remedy
    content = bytearray((tmp_path / "images/c.png").read_bytes())
    content[5000] ^= 1
    (tmp_path / "images/c.png").write_bytes(bytes(content))
    assert scan(tmp_path)[1] == [], "one byte makes another image"


def test_the_same_bytes_twice_in_one_split_are_a_warning(tmp_path: Path) -> None:
    pairs(tmp_path, *"abc")
    write_list(tmp_path, {"training": [entry("a"), entry("b")], "validation": [entry("c")]})
    same_bytes(tmp_path, "images/a.png", "images/b.png")
    _, problems, told = scan(tmp_path)
    assert problems == [] and any("same bytes" in text for text in told)


def test_a_series_that_was_exported_twice_is_the_same_image(tmp_path: Path) -> None:
    for case in "abc":
        touch(tmp_path, f"masks/{case}.nii.gz")
        for k in range(3):
            path = tmp_path / "images" / case / f"{'IM' if case == 'a' else 'x'}{k}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"other" if case == "c" else str(k).encode() * 5)
    (problem,) = scan(tmp_path)[1]
    assert "same bytes" in str(problem)


def test_a_link_is_the_same_file(tmp_path: Path) -> None:
    pairs(tmp_path, *"ab")
    (tmp_path / "images/l.png").symlink_to(tmp_path / "images/a.png")
    touch(tmp_path, "masks/l.png")
    write_list(tmp_path, {"training": [entry("a"), entry("b")], "validation": [entry("l")]})
    assert "both training and validation" in str(scan(tmp_path)[1][0])


# ---------------------------------------------------------------- nothing is skipped in silence


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    pairs(tmp_path, *"abc")
    touch(tmp_path, *(f"images/p{i}.xyz" for i in range(5)), "masks/notes.docx")
    _, problems, told = scan(tmp_path)
    assert problems == []
    (images,) = [text for text in told if "images" in text]
    assert (
        "5 files are of a kind that is not read (.xyz)" in images
        and "p0.xyz" in images
        and "Convert" in images
    )
    assert any("1 file is" in text and "notes.docx" in text for text in told)


def test_where_nothing_else_is_there_they_are_a_failure(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/p{i}.xyz" for i in range(5) for kind in ("images", "masks")))
    problems = scan(tmp_path)[1]
    assert "5 files are of a kind that is not read (.xyz)" in str(problems[0]) and problems[0].remedy
    assert all("split is empty" not in str(problem) for problem in problems)


def test_hidden_and_system_files_are_ignored_everywhere(tmp_path: Path) -> None:
    pairs(tmp_path, *"abc")
    for folder in ("images", "masks"):
        touch(tmp_path, *(f"{folder}/{n}" for n in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini")))
    _, problems, told = scan(tmp_path)
    assert problems == [] and told == []
    nnunet(tmp_path / "nn", 3)
    touch(tmp_path / "nn", "imagesTr/._c_000_0000.nii.gz", "labelsTr/Thumbs.db")
    assert scan(tmp_path / "nn")[1:] == ([], [])


def test_one_case_under_two_suffixes_is_refused(tmp_path: Path) -> None:
    pairs(tmp_path, *"abc")
    touch(tmp_path, "images/a.nii.gz")
    assert "two files have this case id" in str(scan(tmp_path)[1][0])


def test_voxels_beside_a_header_are_no_case_of_their_own(tmp_path: Path) -> None:
    for n in "abc":
        touch(tmp_path, f"images/{n}.mhd", f"images/{n}.raw", f"masks/{n}.mha")
    assert sorted(all_of(load(tmp_path))) == ["a", "b", "c"] and scan(tmp_path)[2] == []


def test_series_without_suffixes_are_cases(tmp_path: Path) -> None:
    for n in "abc":
        touch(tmp_path, f"images/{n}/study/series/IM0001", f"labels/{n}.nii.gz")
    assert sorted(all_of(load(tmp_path))) == ["a", "b", "c"]


# ---------------------------------------------------------------- names and folders of any kind


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\0b.png", "names no file"),
        ("/", "names no file"),
        (".", "names no file"),
        ("caf\udce9.png", "is no Unicode text"),
        ("x" * 300 + ".png", "File name too long"),
        ("~nobody-here/x.png", "no such file"),
    ],
)
def test_names_that_can_be_no_file_are_told(tmp_path: Path, kind: str, name: str, words: str) -> None:
    pairs(tmp_path, *"abcde")
    odd = entry("e") | {kind: name}
    write_list(tmp_path, {"training": [*(entry(n) for n in "abcd"), odd], "test": []})
    _, problems, _ = scan(tmp_path)
    assert [words in str(p) for p in problems] == [True], problems
    assert problems[0].remedy
    str(problems[0]).encode()


def test_files_whose_names_are_no_unicode_are_told(tmp_path: Path) -> None:
    pairs(tmp_path, "b", "c", "d", "caf\udce9")
    _, problems, _ = scan(tmp_path)
    assert [p.value for p in problems] == ["caf\\udce9.png"] * 2
    assert {p.problem for p in problems} == {"is no Unicode text"}


def test_letters_of_two_systems_are_one_name(tmp_path: Path) -> None:
    """A Mac writes ü as u and two dots."""
    touch(tmp_path, *(f"images/{u}{i}.png" for i, u in enumerate(["\xfc", "u\u0308", "\xfc"])))
    touch(tmp_path, *(f"masks/{u}{i}.png" for i, u in enumerate(["u\u0308", "\xfc", "\xfc"])))
    names = [f"\xfc{i}" for i in range(3)]
    assert sorted(all_of(load(tmp_path))) == names
    write_list(tmp_path, {"training": [entry(name) for name in names]})
    assert sorted(all_of(load(tmp_path))) == names


def test_links_in_a_circle_are_no_files(tmp_path: Path) -> None:
    pairs(tmp_path, *"abcd")
    for kind in ("images", "masks"):
        (tmp_path / kind / "e.png").symlink_to("e.png")
    _, problems, _ = scan(tmp_path)
    assert len(problems) == 2
    assert all("e.png" in str(p) and "symbolic links" in str(p) for p in problems)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs(tmp_path, *"abcd")

    def refuse(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    _, problems, _ = scan(tmp_path)
    assert [(p.file, p.problem) for p in problems] == [
        (str(tmp_path / "images"), "cannot be read: Permission denied")
    ]


def test_two_layouts_are_refused(tmp_path: Path) -> None:
    pairs(nnunet(tmp_path, cases=4), *"abc")
    _, problems, _ = scan(tmp_path)
    assert "holds images/ and imagesTr/" in problems[0].problem


def test_folders_without_a_case_are_told_as_such(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    _, problems, _ = scan(tmp_path)
    assert [p.problem for p in problems] == ["there are no cases"]


@pytest.mark.parametrize("column", ["patient", "patient_id", "Patient ID"])
def test_patients_and_folds_as_programs_write_them(tmp_path: Path, column: str) -> None:
    pairs(tmp_path, *"abcdef")
    rows = [f"images/{c}.png,masks/{c}.png,p{i // 2},{i // 2}.0" for i, c in enumerate("abcdef")]
    (tmp_path / "dataset.csv").write_text("\n".join([f"image,label,{column},fold", *rows]))
    splits, problems, warnings = scan(tmp_path)
    assert [problems, warnings] == [[], []]
    assert {case.patient for case in splits.training} == {"p1", "p2"}


def test_a_key_of_splits_final_that_is_no_split_is_refused(tmp_path: Path) -> None:
    nnunet(tmp_path, cases=3)
    folds = [{"train": ["c_000"], "val": ["c_001"], "vall": ["c_002"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    _, problems, _ = scan(tmp_path)
    assert "vall: is no split" in str(problems[0])


@pytest.mark.parametrize("name", ["{}", "{}_0000", "{}.nii.gz", "imagesTr/{}_0000.nii.gz"])
def test_splits_final_may_name_files_and_must_name_cases_of_this_site(tmp_path: Path, name: str) -> None:
    nnunet(tmp_path, cases=3)
    file = tmp_path / "splits_final.json"
    folds = [{"train": [name.format("c_000"), name.format("c_001")], "val": [name.format("c_002")]}]
    file.write_text(json.dumps(folds))
    assert load(tmp_path) == {"training": ["c_000", "c_001"], "validation": ["c_002"], "test": []}
    file.write_text(json.dumps([{"train": ["c_000"], "val": ["x"]}]))
    _, problems, _ = scan(tmp_path)
    assert "validation: none of these cases is here" in str(problems[0])


def test_what_stands_beside_a_case_is_read_or_told(tmp_path: Path) -> None:
    pairs(tmp_path, *"abcdef")
    write_list(
        tmp_path, {"training": [entry(c, patient_id=i // 2, site="x") for i, c in enumerate("abcdef")]}
    )
    splits, problems, warnings = scan(tmp_path)
    assert problems == []
    assert {case.patient for case in splits.training}.isdisjoint(c.patient for c in splits.validation)
    assert any(text.endswith("keys of cases in training that are not read: site") for text in warnings)
    write_list(tmp_path, {"training": [*map(entry, "abcde"), entry("f", split="test")]})
    _, problems, _ = scan(tmp_path)
    assert "training.5.split = 'test': stands under training" in str(problems[0])


def test_files_under_a_key_that_is_not_read_are_told(tmp_path: Path) -> None:
    pairs(tmp_path, *"abcdef")
    write_list(
        tmp_path, {"training": [entry(c) for c in "abcde"], "holdout": ["images/f.png"], "tags": ["x"]}
    )
    _, _, warnings = scan(tmp_path)
    assert [text.split(": ")[1] for text in warnings] == ["1 cases stand under holdout, which is not read"]


@pytest.mark.parametrize("table", [True, False])
def test_system_files_in_a_list_are_no_cases(tmp_path: Path, table: bool) -> None:
    pairs(tmp_path, *"abcdef", "._a")
    names = [*"abcdef", "._a"]
    if table:
        rows = [f"images/{n}.png,masks/{n}.png" for n in names]
        (tmp_path / "dataset.csv").write_text("\n".join(["image,label", *rows]))
    else:
        write_list(tmp_path, {"training": [entry(n) for n in names]})
    splits, problems, warnings = scan(tmp_path)
    assert problems == []
    assert sorted(case.id for _, case in splits) == [*"abcdef"]
    assert any("1 cases are system files, and left out: ._a.png" in text for text in warnings)


def test_a_label_is_no_image_and_seldom_that_of_two(tmp_path: Path) -> None:
    pairs(tmp_path, *"abcdef")
    twice = {"image": "images/e.png", "label": "masks/d.png"}
    write_list(tmp_path, {"training": [*map(entry, "abcd"), twice, entry("f", label="images/f.png")]})
    _, problems, warnings = scan(tmp_path)
    assert ["case = 'f': is its own label" in str(p) for p in problems] == [True]
    assert any("d.png is the label of d, and of e, too" in text for text in warnings)
