"""Whether two cases are the same image: the same file, or another with the same bytes.

Only images of equal size are looked into, first at a few places, and read whole where these agree.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path

from gossipseg.learn.data.cases import Case, Splits
from gossipseg.learn.params import SplitName

Placed = tuple[SplitName, Case]
_PIECE = 4096
_BLOCK = 1 << 20


def alike(splits: Splits) -> Iterator[tuple[Placed, Placed]]:
    """Pairs of cases whose images have the same bytes. Files that cannot be read are left to their reader."""
    groups: list[list[Placed]] = [list(splits)]
    for key in (_sizes, _samples, _contents):
        groups = [again for group in groups for again in _grouped(group, key) if len(again) > 1]
    for first, *others in groups:
        for other in others:
            yield first, other


def _grouped(group: Iterable[Placed], key: Callable[[list[Path]], Hashable]) -> list[list[Placed]]:
    found: defaultdict[Hashable, list[Placed]] = defaultdict(list)
    for split, case in group:
        try:
            value = key(_files(case))
        except OSError:
            continue
        if value is not None:
            found[value].append((split, case))
    return list(found.values())


def _files(case: Case) -> list[Path]:
    """All files of an image, those in its folder among them."""
    found: list[Path] = []
    for path in case.files:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def _sizes(files: list[Path]) -> Hashable:
    """None for an image without a byte, which is nobody's."""
    sizes = sorted(path.stat().st_size for path in files)
    return tuple(sizes) if any(sizes) else None


def _samples(files: list[Path]) -> Hashable:
    return tuple(sorted(_sample(path) for path in files))


def _sample(path: Path) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        size = path.stat().st_size
        for at in (0, size // 3, size // 2, max(0, size - _PIECE)):
            file.seek(at)
            found.update(file.read(_PIECE))
    return found.digest()


def _contents(files: list[Path]) -> Hashable:
    return tuple(sorted(_content(path) for path in files))


def _content(path: Path) -> bytes:
    found = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.digest()
