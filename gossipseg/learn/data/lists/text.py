"""Text as people's programs leave it: byte-order marks, UTF-16, CRLF."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError, DataMissing

_MARKS = (  # the longer ones first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(file: Path, key: str | None = None) -> str:
    """The file's text, whatever its encoding among those of Unicode. Raises DataError naming it."""
    try:
        raw = file.read_bytes()
    except (OSError, ValueError) as e:
        said = e.strerror if isinstance(e, OSError) else None
        remedy = "Correct the name, or let this user read the file."
        away = isinstance(e, OSError) and not isinstance(e, IsADirectoryError | PermissionError)
        kind = DataMissing if away else DataError
        raise kind(f"cannot be read: {said or e}", file=file, key=key, remedy=remedy) from None
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), None) or _unmarked(raw)
    try:
        return raw.decode(encoding)
    except UnicodeError as e:
        remedy = "Save it as UTF-8."
        raise DataError(f"is no Unicode text: {e}", file=file, key=key, remedy=remedy) from None


def _unmarked(raw: bytes) -> str:
    """UTF-16 without a mark shows by its zeros: the first letter of a list is one of ASCII."""
    if len(raw) >= 2 and len(raw) % 2 == 0 and (raw[0] == 0) != (raw[1] == 0):
        return "utf-16-be" if raw[0] == 0 else "utf-16-le"
    return "utf-8"


def read_json(file: Path, key: str | None = None) -> Any:
    """The file's JSON. Raises DataError: also where a key stands twice, of which JSON would keep one."""
    text = read_text(file, key)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except _Twice as e:
        problem, remedy = "stands twice in one object: one of the two would be lost", "Join the two."
        raise DataError(problem, file=file, key=str(e), remedy=remedy) from None
    except (ValueError, RecursionError) as e:
        remedy = "Mend the line it names."
        raise DataError(f"is not valid JSON: {e}", file=file, remedy=remedy) from None


class _Twice(Exception):
    """A key that stands twice in an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found
