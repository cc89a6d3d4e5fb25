"""Nothing on the terminal from libraries written in C, which report a file's faults there besides."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def silence() -> Iterator[None]:
    """MetaIO and libtiff write to the process's standard error, past every handler of Python's."""
    sys.stderr.flush()
    try:
        kept = os.dup(STDERR)
    except OSError:  # a daemon without a terminal has closed it: nothing to keep clean
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)
