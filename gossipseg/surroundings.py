"""The environment of a child process that imports torch and MONAI: a user's name, a home, caches, a TMPDIR.

Without a passwd entry, `getpass.getuser()` fails where neither USER nor LOGNAME is set. torch calls it when
it is imported.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path

USER = "gossipseg"
TMP, HOME, CACHE = "tmp", "home", "cache"
"""Folders below the state directory."""
_CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "xdg",
    "XDG_CONFIG_HOME": "config",
}
_WANTED = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")
"""Variables set where there is no home to hold these folders."""


def named(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with a user's name where the machine knows none."""
    names = ("LOGNAME", "USER", "LNAME", "USERNAME")
    if any(environ.get(name) for name in names) or _known():
        return dict(environ)
    return {**environ, "USER": USER, "LOGNAME": USER}


def of_worker(environ: Mapping[str, str], state_dir: Path) -> dict[str, str]:
    """The environment for a worker: TMPDIR is its own; missing folders are made below `state_dir`.

    Raises OSError when the state directory cannot be written.
    """
    env = named(environ) | {"TMPDIR": str(_private(state_dir / TMP))}
    homeless = not _usable(env.get("HOME", ""))
    if homeless:
        env["HOME"] = str(_private(state_dir / HOME))
    for key, folder in _CACHES.items():
        lacks = homeless and key in _WANTED if key not in env else not _usable(env[key])
        if lacks:
            _private(state_dir / CACHE)
            env[key] = str(_private(state_dir / CACHE / folder))
    return env


def empty_tmp(state_dir: Path) -> None:
    """Remove what a killed worker has left in its TMPDIR. Only while no worker runs.

    What cannot be removed stays. A link is not followed: its target may be others'.
    """
    folder = state_dir / TMP
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()


def _known() -> bool:
    """Whether the machine knows this process's user."""
    try:
        return bool(pwd.getpwuid(os.getuid()).pw_name)
    except (KeyError, OSError):
        return False


def _usable(folder: str) -> bool:
    """Whether files can be made in the folder."""
    path = Path(folder)
    if not path.is_absolute():
        return False
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _private(folder: Path) -> Path:
    if folder.is_symlink() and folder.is_dir():
        return folder
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    return folder
