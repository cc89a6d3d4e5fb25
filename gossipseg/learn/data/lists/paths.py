"""File names as lists have them, and whether a file is there: no name is too odd to be told of."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

_NOT_THERE = (FileNotFoundError, NotADirectoryError)


def home_of(text: str) -> Path:
    """The path, with ~ understood where there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def path_of(name: str, folder: Path) -> Path:
    """A list's file name as a path: relative to the list's folder, ~ and backslashes understood.

    Letters with accents are one character in most names and two in those that a Mac wrote.
    Raises ValueError, saying why, for a text that names no file.
    """
    plain = name.strip()
    if problem := name_problem(plain):
        raise ValueError(problem)
    slashes = plain.replace("\\", "/")
    written = [plain, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))]
    paths = [folder / home_of(text) for text in dict.fromkeys(written)]
    return next((path for path in paths if missing(path) is None), folder / home_of(slashes))


def name_problem(name: str) -> str | None:
    """Why no case can be named after this file; None where it can."""
    if not Path(name).name or "\0" in name:
        return "names no file"
    return None if shown(name) == name else "is no Unicode text"


def shown(name: str) -> str:
    """A name that can be shown anywhere."""
    return name.encode(errors="backslashreplace").decode()


def same_letters(name: str) -> str:
    """The name with one character for each letter, so that two systems' names of a case are one."""
    return unicodedata.normalize("NFC", name)


def missing(path: Path) -> str | None:
    """What keeps a file from being there for this user; None where nothing does."""
    try:
        path.stat()
    except _NOT_THERE:
        return "no such file"
    except OSError as e:
        return f"cannot be read: {e.strerror or e}"
    except ValueError:
        return "no such file"
    return None


def real(path: Path) -> Path:
    """The path without links. One that leads in a circle stays as it is."""
    return Path(os.path.realpath(path))
