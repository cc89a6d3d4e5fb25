"""One table says what is read, what belongs to an image, and what is never data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gossipseg.errors import DataError
from gossipseg.learn.data.formats.dicom.image import is_dicom
from gossipseg.learn.data.formats.kinds import (
    Kind,
    begins_as_dicom,
    case_stem,
    is_sidecar,
    is_system_file,
    kind_of,
)
from gossipseg.learn.data.readers import read_volume


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [
        ("p.01.nii.gz", Kind.NIFTI, "p.01"),
        ("p.NII", Kind.NIFTI, "p"),
        ("T1.mgz", Kind.MGH, "T1"),
        ("a.b.mhd", Kind.META, "a.b"),
        ("a.seg.nrrd", Kind.NRRD, "a"),
        ("a.nrrd", Kind.NRRD, "a"),
        ("x.JPEG", Kind.PICTURE, "x"),
        ("x.tif", Kind.TIFF, "x"),
        ("1.2.840.113.IMA", Kind.DICOM, "1.2.840.113"),
        ("notes.docx", None, "notes.docx"),
        ("a.npy", None, "a.npy"),
    ],
)
def test_names(name: str, kind: Kind | None, stem: str) -> None:
    assert kind_of(Path("/nowhere") / name) is kind
    assert case_stem(Path(name)) == stem


@pytest.mark.parametrize(
    "name", ["._p0.nii.gz", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden", "__MACOSX"]
)
def test_system_files_are_no_data(name: str) -> None:
    assert is_system_file(name)
    assert kind_of(Path(name)) is None


def test_dicom_without_a_suffix_is_known_by_its_content(tmp_path: Path) -> None:
    contents = {
        "IM0001": b"\0" * 128 + b"DICM" + b"\2\0",
        "1.2.840.77": b"\0" * 128 + b"DICM",
        "old": b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"\0" * 200,
        "implicit": b"\x08\x00\x00\x00\x04\x00\x00\x00\x96\x00\x00\x00" + b"\0" * 200,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) is Kind.DICOM, name
    for name, content in {"README": b"Read me first. " * 30, "empty": b"", "short": b"\x08\0\5\0CS"}.items():
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) is None, name
    (tmp_path / "series").mkdir()
    assert kind_of(tmp_path / "series") is Kind.DICOM


def test_a_sidecar_belongs_to_the_image_of_its_name() -> None:
    names = {"a.mhd", "a.raw", "b.raw", "c.nii.gz", "c.json", "dataset.json"}
    assert {n for n in names if is_sidecar(n, names)} == {"a.raw", "c.json"}


@pytest.mark.parametrize("name", ["p0", "p0.nii.gz", "p0.png", "p0.dcm"])
def test_a_pipe_is_no_image(tmp_path: Path, name: str) -> None:
    """To open one waits for a writer, who never comes."""
    os.mkfifo(tmp_path / name)
    assert not begins_as_dicom(tmp_path / name) and not is_dicom(tmp_path / name)
    with pytest.raises(DataError, match=name):
        read_volume(tmp_path / name, 2)
