"""How our programs start child processes: never with the working directory on Python's path.

A folder named `gossipseg`, or a file `random.py`, in the working directory would replace the real module in
every child. Hence -P, and PYTHONSAFEPATH for a child's own children.
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
    """The working directory of a child: this one, unless it was removed, where torch's MKL ends the
    process."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return "/"
    return None


def environment(**more: str) -> dict[str, str]:
    """This process's environment for a child, with `more` added, and always a user's name."""
    return safe(named(os.environ)) | more


def safe(env: Mapping[str, str]) -> dict[str, str]:
    """The same environment, in which no Python puts the working directory on its path."""
    return {**env, "PYTHONSAFEPATH": "1"}
