"""The file of an outgoing model."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from gossipseg.errors import LocalError

STALLED_TRIES = 3
"""Consecutive tries without progress after which a broken stream is given up."""


async def file_chunks(path: Path, offset: int, size: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
    """The file from `offset`, read in a thread, one chunk ahead. Raises LocalError."""
    loop = asyncio.get_running_loop()
    fd = await asyncio.to_thread(open_model, path, size)
    try:
        ahead = loop.run_in_executor(None, os.pread, fd, chunk_bytes, offset)
        while offset < size:
            try:
                chunk = await asyncio.shield(ahead)
            except OSError as e:
                raise LocalError(f"{path}: the model cannot be read: {e.strerror}.") from e
            if not chunk:
                raise LocalError(f"{path}: the model became shorter while it was sent.")
            offset += len(chunk)
            ahead = loop.run_in_executor(None, os.pread, fd, chunk_bytes, offset)
            yield chunk
    finally:
        with contextlib.suppress(OSError):
            await ahead  # a thread must not read from a closed (and perhaps reused) descriptor
        os.close(fd)


def open_model(path: Path, size: int) -> int:
    """A descriptor of a file that must have `size` bytes. Raises LocalError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise LocalError(f"{path}: the model cannot be opened: {e.strerror}.") from e
    actual = os.fstat(fd).st_size
    if actual != size:
        os.close(fd)
        raise LocalError(f"{path}: the model has {actual} bytes, {size} were offered.")
    return fd
