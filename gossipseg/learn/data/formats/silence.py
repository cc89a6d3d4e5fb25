"""What libraries written in C print to the terminal by themselves: kept off it, and told.

GDCM, libjpeg, MetaIO and libtiff write to the process's standard error, past every handler of Python's. There
is one such stream for all threads, so one reader at a time turns it aside.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

STDERR = 2
_ONE_AT_A_TIME = threading.Lock()
DECODERS = (
    *("jpeg", "huffman", "gdcm", "opj", "j2k", "marker", "decod", "tile", "codeblock", "codestream"),
    *("segment", "packet", "image", "stream"),
)
"""Words of decoders of DICOM's compressed pixels, by which their lines are told from other threads'."""


@contextmanager
def libraries_silent(words: Sequence[str] = ()) -> Iterator[list[str]]:
    """Collect the lines that a library writes to the standard error stream: those with one of these words,
    and other lines still come out; without any words, all that come meanwhile."""
    said: list[str] = []
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as sink:
        _silence_gdcm()
        sys.stderr.flush()
        try:
            before = os.dup(STDERR)
        except OSError:  # a daemon without a terminal has closed it: nothing to keep clean
            yield said
            return
        try:
            os.dup2(sink.fileno(), STDERR)
            yield said
        finally:
            os.dup2(before, STDERR)
            os.close(before)
            sink.seek(0)
            for line in sink.read().decode(errors="replace").splitlines():
                if not words or any(word in line.lower() for word in words):
                    said.append(line.strip())
                else:
                    print(line, file=sys.stderr)


def _silence_gdcm() -> None:
    """What GDCM says by this way comes back in the exception, too."""
    if "pydicom" not in sys.modules:  # nobody reads DICOM here: do not load it for the sake of this
        return
    try:
        gdcm = import_module("gdcm")
    except ImportError:
        return
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
