"""One small JSON document on disk, replaced whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gossipseg.store.atomic import atomic_write, disk_error


class StateFile:
    """A JSON object at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.corrupt_copy: Path | None = None
        """Where load() put a file that it could not read as a JSON object; None if there was none."""

    def load(self) -> dict[str, Any] | None:
        """The object, or None if there is no file or it is damaged (then it is kept as NAME.corrupt).

        Raises LocalError when the file is there but cannot be read.
        """
        self.corrupt_copy = None
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise disk_error(self.path, "read", e) from e
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
        self._set_aside()
        return None

    def save(self, value: dict[str, Any]) -> None:
        """Replace the object, durably. Raises DiskFull, LocalError; TypeError or ValueError if not JSON."""
        text = json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=True)
        atomic_write(self.path, text.encode())

    def _set_aside(self) -> None:
        copy = self.path.with_name(self.path.name + ".corrupt")
        try:
            os.replace(self.path, copy)  # noqa: PTH105
        except OSError as e:
            raise disk_error(self.path, "set aside", e) from e
        self.corrupt_copy = copy
