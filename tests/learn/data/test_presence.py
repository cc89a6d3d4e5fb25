"""Data that are away (and may come back) told from data that are there and wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossipseg.errors import DataError
from gossipseg.learn.data import presence
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.params import DataParams


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("images", "masks"):
        (tmp_path / "mnt/data" / folder).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "mnt/data" / folder / f"{i}.png").write_bytes(b"x")
    return tmp_path / "mnt/data"


def empty(folder: Path) -> None:
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def listed(root: Path, *images: str) -> None:
    rows = ",".join(f'{{"image": "{name}", "label": "masks/{i}.png"}}' for i, name in enumerate(images))
    (root / "dataset.json").write_text(f'{{"training": [{rows}]}}')


def told(root: Path, **data: Any) -> str:
    """What is behind the error that reading the data gives; "" where there is none, or data are wrong."""
    try:
        load_cases(DataParams(str(root), **data), "north")
    except DataError as e:
        return presence.behind(e, root)
    return ""


def test_data_that_are_there(root: Path) -> None:
    assert presence.away(root) == "" and told(root) == ""


def test_a_mount_point_that_is_missing_is_named_not_the_folder_below_it(root: Path) -> None:
    path = root.parents[1] / "nas/share/data"
    assert presence.away(path) == f"data.path {root.parents[1] / 'nas'} is not there"
    assert told(path) == presence.away(path)


@pytest.mark.parametrize("left", [[], [".autofs", ".snapshot"]])
def test_an_empty_mount_point(root: Path, left: list[str]) -> None:
    empty(root)
    for name in left:
        (root / name).mkdir()
    assert presence.away(root) == told(root) == f"data.path {root} is empty"


def test_a_mount_point_that_holds_only_a_note(root: Path) -> None:
    empty(root)
    (root / "NOT_MOUNTED.txt").write_text("")
    assert presence.away(root) == "" and "images/" in told(root)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_share_below_the_data_folder(root: Path, folder: str) -> None:
    empty(root / folder)
    assert told(root) == f"{root / folder} is empty"


def test_images_elsewhere_by_a_list_and_by_links(root: Path) -> None:
    share = root.parent / "share"
    listed(root, "../share/a.png", "../share/b.png")
    assert told(root) == f"{share} is not there"
    share.mkdir()
    assert told(root) == f"{share} is empty"
    listed(root, "images/link.png", "images/0.png")
    (root / "images/link.png").symlink_to(share / "a.png")
    assert told(root) == f"{share} is empty"


def test_a_list_on_the_share(root: Path) -> None:
    assert "lists/all.json" in told(root, list="lists/all.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset.csv", b""),
        ("dataset.csv", b"image,label\n"),
        ("dataset.csv", b"\xff\xfe\x00"),
        ("dataset.json", b'{"training": []}'),
        ("dataset.json", b'{"training": [{"image": "images/0.png", "label": "masks/0.png"}]}'),
    ],
    ids=["empty", "no rows", "no text", "no cases", "one patient"],
)
def test_a_list_that_is_there_and_wrong(root: Path, name: str, text: bytes) -> None:
    """Waiting mends none of them."""
    (root / name).write_bytes(text)
    assert told(root) == ""


def test_two_lists_or_two_folders_of_labels(root: Path) -> None:
    (root / "labels").mkdir()
    (root / "labels/0.png").write_bytes(b"x")
    assert told(root) == ""
    for name in ("dataset.json", "dataset.csv"):
        (root / name).write_text("")
    assert told(root) == ""


def test_what_is_wrong_is_not_away(root: Path) -> None:
    listed(root, "images/0.png", "images/no-such.png")
    assert told(root) == "", "one of many that are there"
    listed(root, "images/0.png", "images/no-such-patient/0.png")
    assert told(root) == "", "a folder of one patient among many files"
    (root / "dataset.json").write_text("{")
    assert told(root) == ""
    (root / "dataset.json").unlink()
    (root / "images/0.png").unlink()
    assert told(root) == ""
    wrong = DataError("label 7", file=root / "masks/1.png")
    assert presence.behind(wrong, root) == "" and presence.behind(OSError(), root) == ""


@pytest.mark.parametrize(("number", "away"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False)])
def test_a_file_that_cannot_be_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, away: bool
) -> None:
    real: Callable[..., Any] = Path.open

    def broken(self: Path, *args: Any, **more: Any) -> Any:
        if self.name == "1.png":
            raise OSError(number, os.strerror(number))
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "open", broken)
    found = presence.behind(DataError("cannot be read", file=root / "images/1.png"), root)
    assert (os.strerror(number) in found) == away


def test_a_folder_that_answers_with_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(_: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "scandir", stale)
    assert presence.away(root) == f"data.path {root} cannot be read: Stale file handle"
    assert presence.behind(OSError(errno.EIO, "x"), root) == presence.away(root)
    assert "restart" in presence.waiting(presence.away(root))
