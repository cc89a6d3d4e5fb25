"""How a program of ours starts another one: never with the working directory on Python's path.

A folder named `gossipseg`, or a file `random.py`, where a command is typed would be imported in place of
the real one, into every child; hence -P, and PYTHONSAFEPATH for what a child starts itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from gossipseg.surroundings import named


def python_module(module: str) -> tuple[str, ...]:
    """The command that runs a module as a program."""
    return (sys.executable, "-P", "-m", module)


def directory() -> str | None:
    """Where a child starts: here, but for a working directory that was removed, in which torch's MKL ends the
    process."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return "/"
    return None


def environment(**more: str) -> dict[str, str]:
    """This process's environment for a child, with `more` on top, and a user's name in any case."""
    return safe(named(os.environ)) | more


def safe(env: Mapping[str, str]) -> dict[str, str]:
    """The same environment, in which no Python puts the working directory on its path."""
    return {**env, "PYTHONSAFEPATH": "1"}
