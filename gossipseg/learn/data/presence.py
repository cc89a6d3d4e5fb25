"""Whether a site's data are there, or away: a share that is not mounted, a file server that is down."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from gossipseg.errors import DataError, DataMissing

FOLDERS = ("images", "masks", "labels")
AWAY = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOTCONN",
        "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EREMOTEIO", "ENODEV", "ENXIO", "ENOKEY", "EKEYEXPIRED",
    )
}  # fmt: skip
"""What reading says when a file server, a disk or a ticket is away."""


def away(root: Path) -> str:
    """Why nothing can be read below the data folder now; "" where it holds something."""
    found = _folder(root)
    return f"data.path {found}" if found else ""


def waiting(found: str) -> str:
    """What is said while data are away."""
    remedy = "If it is elsewhere, correct data.path in site.yaml and restart."
    return f"{found.rstrip('.')}: waiting (the share is not mounted?). {remedy}"


def behind(error: Exception, root: Path) -> str:
    """What is away and explains this error; "" where the data are there, and are wrong.

    An empty folder counts as away: a mount point is empty until its share is mounted.
    """
    if found := away(root):
        return found
    if not isinstance(error, DataError):
        return ""
    if isinstance(error, DataMissing):
        return str(error)
    if error.file is not None and (found := _file(Path(str(error.file)), root)):
        return found
    folders = (root / name for name in FOLDERS if (root / name).is_dir())
    return next(filter(None, map(_folder, folders)), "")


def _folder(folder: Path) -> str:
    try:
        with os.scandir(folder) as entries:
            if any(not entry.name.startswith(".") for entry in entries):
                return ""
    except FileNotFoundError:
        return f"{_first_missing(folder)} is not there"
    except (OSError, ValueError) as e:
        return f"{folder} cannot be read: {getattr(e, 'strerror', None) or e}"
    return f"{folder} is empty"


def _first_missing(folder: Path) -> Path:
    """The uppermost part of a path that is not there: of a share, its mount point."""
    while not folder.parent.exists() and folder.parent != folder:
        folder = folder.parent
    return folder


def _misnamed(folder: Path, root: Path) -> bool:
    """It is missing among others of the data, such as one patient's folder: no share is mounted there."""
    above = _first_missing(folder).parent
    return not folder.exists() and root in above.parents and not _folder(above)


def _file(path: Path, root: Path) -> str:
    """As _folder, of the folder that holds the file (behind links), and of reading the file itself."""
    folder = path if path.is_dir() else Path(os.path.realpath(path)).parent
    if found := _folder(folder):
        return "" if _misnamed(folder, Path(os.path.realpath(root))) else found
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as f:
            f.read(1)
    except OSError as e:
        return f"{path} cannot be read: {e.strerror}" if e.errno in AWAY else ""
    return ""
