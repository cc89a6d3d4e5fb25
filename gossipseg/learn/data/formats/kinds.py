"""The one table of what can be read: kinds of files, their suffixes, and what is never an image."""

from __future__ import annotations

import enum
from collections.abc import Collection
from pathlib import Path


class Kind(enum.Enum):
    """A kind of file. The value is its name for people."""

    NIFTI = "NIfTI"
    MGH = "FreeSurfer MGH"
    META = "MetaImage"
    NRRD = "NRRD"
    PICTURE = "picture"
    TIFF = "TIFF"
    DICOM = "DICOM"


SUFFIXES: dict[str, Kind] = {
    ".nii.gz": Kind.NIFTI,
    ".nii": Kind.NIFTI,
    ".mgz": Kind.MGH,
    ".mgh.gz": Kind.MGH,
    ".mgh": Kind.MGH,
    ".mha": Kind.META,
    ".mhd": Kind.META,
    ".seg.nrrd": Kind.NRRD,
    ".seg.nhdr": Kind.NRRD,
    ".nrrd": Kind.NRRD,
    ".nhdr": Kind.NRRD,
    ".png": Kind.PICTURE,
    ".jpg": Kind.PICTURE,
    ".jpeg": Kind.PICTURE,
    ".bmp": Kind.PICTURE,
    ".tif": Kind.TIFF,
    ".tiff": Kind.TIFF,
    ".dcm": Kind.DICOM,
    ".dicom": Kind.DICOM,
    ".ima": Kind.DICOM,
}
"""Longer suffixes stand before those they end with."""

READ = (
    "NIfTI (.nii, .nii.gz), .mgz, .mha, .mhd, .nrrd, .nhdr, .seg.nrrd, PNG, JPEG, BMP, TIFF, and DICOM "
    "(.dcm, .ima, no suffix, or a folder with one series)"
)
"""What is read, for messages."""

SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "dicomdir"}
)
"""Left behind by file browsers, archives and PACS; in lower case."""

SIDECARS = (".raw", ".zraw", ".raw.gz", ".json", ".bval", ".bvec")
"""Beside an image of the same name these belong to it: the voxels of an .mhd or .nhdr, notes of dcm2niix."""

PREAMBLE, MAGIC = 128, b"DICM"


def kind_of(path: Path) -> Kind | None:
    """What the path is read as; None where it is not read. A folder is a DICOM series.

    The suffix decides. A file with none, or with an unknown one, is DICOM if it begins as DICOM does.
    """
    if is_system_file(path.name):
        return None
    suffix = suffix_of(path.name)
    if suffix:
        return SUFFIXES[suffix]
    return Kind.DICOM if path.is_dir() or begins_as_dicom(path) else None


def suffix_of(name: str) -> str:
    """The known (double) suffix, in lower case; empty where there is none."""
    lower = name.lower()
    return next((s for s in SUFFIXES if lower.endswith(s) and len(lower) > len(s)), "")


def case_stem(path: Path) -> str:
    """The file's name without its known (double) suffix; other dots stay."""
    suffix = suffix_of(path.name)
    return path.name[: len(path.name) - len(suffix)] if suffix else path.name


def is_system_file(name: str) -> bool:
    """Whether this name is a hidden or a system file or folder, which is never data."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_sidecar(name: str, siblings: Collection[str]) -> bool:
    """Whether this file belongs to an image of the same name among `siblings` (names in its folder)."""
    lower = name.lower()
    suffix = next((s for s in SIDECARS if lower.endswith(s)), "")
    if not suffix:
        return False
    stem = lower[: -len(suffix)]
    return any(stem + known in {s.lower() for s in siblings} for known in SUFFIXES)


def begins_as_dicom(path: Path) -> bool:
    """Whether the content is a DICOM file's: with its preamble, or the bare data set of old archives."""
    try:
        if not path.is_file():  # to read a pipe may take for ever
            return False
        with path.open("rb") as file:
            head = file.read(PREAMBLE + len(MAGIC))
    except OSError:
        return False
    return head[PREAMBLE:] == MAGIC or (head[:2] in (b"\x02\x00", b"\x08\x00") and _is_element(head))


def _is_element(head: bytes) -> bool:
    """A first element of group 2 or 8: explicit (a VR of two capitals), or implicit with a short value."""
    if len(head) < PREAMBLE:
        return False
    element, length = int.from_bytes(head[2:4], "little"), int.from_bytes(head[4:8], "little")
    return element <= 0x20 and ((head[4:6].isalpha() and head[4:6].isupper()) or length <= 64)
