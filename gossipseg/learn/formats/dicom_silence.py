"""What decoders written in C print to the terminal by themselves: kept off it, and told."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

_ONE_AT_A_TIME = threading.Lock()
_OF_DECODERS = ("JPEG", "jpeg", "Huffman", "gdcm", "opj", "marker")


@contextmanager
def libraries_silent() -> Iterator[list[str]]:
    """Collect the lines that decoders write to the standard error stream; other lines still come out."""
    said: list[str] = []
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as sink:
        _silence_gdcm()
        sys.stderr.flush()
        try:
            before = os.dup(2)
        except OSError:  # a daemon without a terminal has closed it: nothing to keep clean
            yield said
            return
        try:
            os.dup2(sink.fileno(), 2)
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            sink.seek(0)
            for line in sink.read().decode(errors="replace").splitlines():
                if any(word in line for word in _OF_DECODERS):
                    said.append(line.strip())
                else:
                    print(line, file=sys.stderr)


def _silence_gdcm() -> None:
    """What GDCM says by this way comes back in the exception, too."""
    try:
        gdcm = import_module("gdcm")
    except ImportError:
        return
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
