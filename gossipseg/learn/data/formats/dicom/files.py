"""Which files are DICOM, and which of a folder's files belong to its series.

Files are known by their content: archives export them without a suffix, as .IMA, in folders of folders.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gossipseg.errors import DataError, LocalError
from gossipseg.learn.data.formats.dicom.base import read_dataset, text
from gossipseg.learn.data.formats.kinds import is_system_file

_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_SUFFIXES = (".dcm", ".ima", ".dicom")
_UID_ROOT = "1.2.840.10008."


@dataclass(frozen=True, slots=True)
class DicomListing:
    """A folder's files, nested ones included, in the order of their names."""

    dicom: tuple[Path, ...]
    others: tuple[Path, ...]
    """Not DICOM, not hidden, not the system's."""


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM, by its content. Never raises: a file that cannot be opened is none."""
    try:
        if not path.is_file():  # to read a pipe may take for ever
            return False
        with path.open("rb") as f:
            start = f.read(132)
    except OSError:
        return False
    return start[128:132] == b"DICM" or (_starts_with_elements(start) and _has_a_class(path))


def list_folder(folder: Path) -> DicomListing:
    """All DICOM files under a folder. Raises DataError for an empty or damaged file among them."""
    dicom: list[Path] = []
    others: list[Path] = []
    for path in files_under(folder):
        (dicom if path.is_file() and is_dicom(path) else others).append(path)
    named_alike = {_pattern(p) for p in dicom} - {None}
    for path in others:
        # A lost slice must not pass for a file of another kind.
        if path.name.lower().endswith(_SUFFIXES) or _pattern(path) in named_alike:
            raise DataError(
                f"is named as a DICOM file but {_fault(path)}",
                file=path,
                remedy="Export the series again, or take the file out of its folder.",
            )
    return DicomListing(tuple(dicom), tuple(others))


def is_directory_record(head: object) -> bool:
    """Whether a file is a medium's table of contents (DICOMDIR under another name)."""
    meta = getattr(head, "file_meta", None)
    return str(getattr(meta, "MediaStorageSOPClassUID", "")) == _DIRECTORY_CLASS


def _starts_with_elements(start: bytes) -> bool:
    """Whether bytes begin as a DICOM file without a preamble does: group 0002 or 0008, little endian."""
    return len(start) >= 8 and start[:2] in (b"\x02\x00", b"\x08\x00") and start[3] in (0, 1)


def _has_a_class(path: Path) -> bool:
    try:
        head = read_dataset(path, ("SOPClassUID", "Modality"))
        return text(head, "SOPClassUID", path).startswith(_UID_ROOT)
    except (DataError, LocalError):
        return False


def files_under(folder: Path) -> list[Path]:
    """Files under a folder, each once however many links lead to it, without hidden and system files."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        for path in _entries(here):
            if path.is_dir():
                waiting.append(path)
            elif path.is_file() or path.is_symlink():
                found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _entries(folder: Path) -> list[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError as e:
        raise DataError(f"this folder cannot be read: {e.strerror}", file=folder) from e
    return sorted(p for p in entries if not is_system_file(p.name))


def _pattern(path: Path) -> tuple[Path, str] | None:
    """A file's folder and its name with the numbers left out; None for a name without numbers."""
    name = re.sub(r"\d+", "#", path.name)
    return (path.parent, name) if "#" in name else None


def _fault(path: Path) -> str:
    if not path.exists():
        return "is a broken link"
    try:
        with path.open("rb") as f:
            return "is not one: it lacks the mark DICM" if f.read(1) else "is empty"
    except OSError as e:
        return f"cannot be opened: {e.strerror}"
