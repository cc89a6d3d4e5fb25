"""How much memory there is, and what is said where it does not suffice."""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gossipseg.errors import LocalError

if TYPE_CHECKING:
    from gossipseg.learn.data.cases import Case

_CGROUP = Path("/sys/fs/cgroup")
_SIGNS = (
    "can't allocate memory",  # torch on the CPU
    "out of memory",  # CUDA, and the C library
    "Cannot allocate memory",
    "Unable to allocate",  # numpy
    "bad_alloc",
    "Failed to allocate",  # ITK
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that memory did not suffice."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or any(sign in str(seen) for sign in _SIGNS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def memory_for(case: Case, shape: tuple[int, ...] = ()) -> Iterator[None]:
    """Tell which case it was that did not fit. Raises LocalError. `shape`: (C, *spatial), once known."""
    try:
        yield
    except LocalError:
        raise
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        have = available_bytes()
        there = "" if have is None else f"; {gigabytes(have)} are free"
        raise LocalError(
            f"{case.files[0]}: not enough memory to read and prepare this case ({_size(case, shape)}{there})."
            " Give the process more memory, resample the image to larger voxels, or take the case out of the "
            "data list."
        ) from e


def _size(case: Case, shape: tuple[int, ...]) -> str:
    if shape:
        return f"{'×'.join(map(str, shape[1:]))}, {gigabytes(4 * math.prod(shape))} as float32"
    listed = [f for file in case.files for f in (file.rglob("*") if file.is_dir() else [file])]
    files = [file for file in listed if file.is_file()]
    return f"{gigabytes(sum(file.stat().st_size for file in files))} on disk"


def available_bytes() -> int | None:
    """What this process may still take of main memory: what the machine has left, or what the control group
    or the address-space limit leaves, whichever is least. None where the system does not tell."""
    found = [n for n in (_machine(), _group(), _address_space()) if n is not None]
    return min(found) if found else None


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _group() -> int | None:
    """Limit of the control group (version 2) that the process is in, as in a container or a unit."""
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition(":")[2].lstrip("/")
        for folder in (_CGROUP / own, _CGROUP):
            limit = folder / "memory.max"
            if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
                used = int((folder / "memory.current").read_text(encoding="ascii"))
                return max(0, int(text) - used)
    return None


def _address_space() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return max(0, limit - pages * resource.getpagesize())
    return limit
