"""Paths as an operator writes them: `~`, and paths relative to the working directory.

HOME or the user may be missing, and the directory that a command was typed in may be gone.
"""

from __future__ import annotations

from pathlib import Path

from gossipseg.errors import ConfigError, LocalError


def expanded(text: str | Path, key: str | None = None, file: object = None) -> Path:
    """The path with `~` and `~user` replaced. Raises ConfigError naming the key where the user is unknown."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, KeyError):
        raise ConfigError(
            "no home directory is known for it",
            file=file,
            key=key,
            value=str(text),
            remedy="Write the whole path, beginning with /.",
        ) from None


def absolute(path: Path) -> Path:
    """The absolute path. Raises LocalError where it is relative to a directory that is gone."""
    try:
        return path.absolute()
    except OSError as e:
        raise LocalError(
            f"{path}: the directory that this command was called in cannot be found "
            f"({e.strerror or e}): it was removed. Change to another one, or give whole paths."
        ) from None
