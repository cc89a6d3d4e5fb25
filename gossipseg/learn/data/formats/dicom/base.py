"""Values out of DICOM files, one at a time: what is missing or malformed names the file and the tag."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError, GossipsegError, LocalError

PIP = "pip install 'gossipseg[dicom]'"


def pydicom_package() -> Any:
    """The package pydicom. Raises LocalError where it is not installed."""
    try:
        import pydicom
    except ImportError:
        raise LocalError(f"DICOM files need the package pydicom. Install gossipseg[dicom]: {PIP}") from None
    return pydicom


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of the DICOM libraries: what matters of them is an error of ours, with file and tag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever else a library raises over a file's content is a DataError of that file; no warnings."""
    try:
        with quiet():
            yield
    except (GossipsegError, MemoryError):
        raise
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror or e}", file=e.filename or path) from e
    except Exception as e:
        # pydicom and the decoders raise whatever a damaged element leads them to.
        raise DataError(
            f"cannot be read as DICOM: {type(e).__name__}: {e}; the file is damaged",
            file=path,
            remedy="Export it again, or take the case out of the data list.",
        ) from e


def read_dataset(path: Path, tags: Sequence[str] | None = None) -> Any:
    """A file's elements; with `tags`, only these, and not the pixels. Raises DataError."""
    pydicom = pydicom_package()
    try:
        with quiet():
            if tags is None:
                return pydicom.dcmread(path, force=True)
            return pydicom.dcmread(path, force=True, specific_tags=list(tags), stop_before_pixels=True)
    except FileNotFoundError:
        raise DataError("no such file", file=path, remedy="Correct the data list or the path.") from None
    except Exception as e:
        # pydicom raises whatever a torn file leads it to (struct.error, EOFError, zlib.error, ValueError).
        raise DataError(
            f"cannot be read as DICOM ({type(e).__name__}: {e}); the file is damaged or truncated",
            file=path,
            remedy="Export it again, or take the case out of the data list.",
        ) from e


def tag_name(keyword: str) -> str:
    """`PixelSpacing` → `PixelSpacing (0028,0030)`."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    return keyword if tag is None else f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def value(dataset: Any, keyword: str, file: Path) -> Any:
    """An element's value; None where it is absent or empty. Raises DataError where it is malformed."""
    if dataset is None:
        return None
    try:
        with quiet():
            found = dataset.get(keyword)
            if found is None or (not isinstance(found, int | float) and len(found) == 0):
                return None
            return found
    except Exception as e:
        raise DataError(
            f"has a value that cannot be read: {e}", file=file, key=tag_name(keyword), remedy=_AGAIN
        ) from e


_AGAIN = "Export the series again, or correct the tag."


def text(dataset: Any, keyword: str, file: Path) -> str:
    """An element as one line of text; "" where it is absent."""
    found = value(dataset, keyword, file)
    if found is None:
        return ""
    if isinstance(found, str | int | float):
        return str(found).strip()
    return "\\".join(str(v).strip() for v in found) if hasattr(found, "__iter__") else str(found)


def floats(dataset: Any, keyword: str, count: int, file: Path) -> tuple[float, ...] | None:
    """An element of `count` finite numbers; None where it is absent. Raises DataError for others."""
    found = value(dataset, keyword, file)
    if found is None:
        return None
    try:
        numbers = [float(v) for v in (found if hasattr(found, "__iter__") else [found])]
    except (TypeError, ValueError):
        numbers = []
    if isinstance(found, str) or len(numbers) != count or not all(map(math.isfinite, numbers)):
        wanted = "one number" if count == 1 else f"{count} numbers"
        raise DataError(
            f"must hold {wanted}", file=file, key=tag_name(keyword), value=str(found), remedy=_AGAIN
        )
    return tuple(numbers)


def number(dataset: Any, keyword: str, file: Path) -> float | None:
    """An element of one finite number; None where it is absent."""
    found = floats(dataset, keyword, 1, file)
    return None if found is None else found[0]


def whole(dataset: Any, keyword: str, file: Path, default: int | None = None) -> int:
    """An element of one whole number. Raises DataError where it is absent and has no default."""
    found = number(dataset, keyword, file)
    if found is None:
        if default is None:
            raise DataError(
                "is missing; the file is truncated, or not an image",
                file=file,
                key=tag_name(keyword),
                remedy="Export it again, or take it out of the folder.",
            )
        return default
    if found != int(found):
        raise DataError("must be a whole number", file=file, key=tag_name(keyword), value=found)
    return int(found)


def items(dataset: Any, keyword: str, file: Path) -> list[Any]:
    """The items of a sequence; none where it is absent."""
    found = value(dataset, keyword, file)
    if found is None:
        return []
    if isinstance(found, str | bytes | int | float):
        raise DataError("must be a sequence", file=file, key=tag_name(keyword), remedy=_AGAIN)
    return list(found)


def first_item(dataset: Any, keyword: str, file: Path) -> Any:
    """The first item of a sequence, or None."""
    return next(iter(items(dataset, keyword, file)), None)
