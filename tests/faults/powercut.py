"""What a disk may hold after a power cut at any instant of an action.

While the action runs, every file operation is watched, and before and after each (in a write: also half-way)
three disks are noted: all of it has reached the disk; only what was fsynced has, names and contents alike;
names have, contents that were not fsynced have not. What must not be here: what should be found there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes]
"""Relative path → content."""


@dataclass(frozen=True)
class Cut:
    """A disk after the power came back."""

    after: str
    """The operation before the cut."""
    kind: str
    """all | synced | names"""
    files: Tree

    def lay_out(self, root: Path, directories: list[str]) -> Path:
        for name in directories:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (root / name).write_bytes(content)
        return root

    def __str__(self) -> str:
        return f"cut after {self.after}, {self.kind}: { ({k: len(v) for k, v in self.files.items()}) }"


@dataclass
class Disk:
    """Follows a directory tree. Files and names that are there at the start are durable, but `unsynced`."""

    root: Path
    unsynced: tuple[str, ...] = ()
    cuts: list[Cut] = field(default_factory=list)
    _ids: dict[int, int] = field(default_factory=dict)
    _synced: dict[int, bytes] = field(default_factory=dict)
    _names: dict[Path, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directories = [str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_dir()]
        for folder in self._folders():
            self._sync_names(folder)
        for path in self._files():
            hidden = str(path.relative_to(self.root)) in self.unsynced
            self._synced[self._id(path.stat().st_ino)] = b"" if hidden else path.read_bytes()
        self.note("the beginning")

    def _folders(self) -> list[Path]:
        return [self.root, *(p for p in self.root.rglob("*") if p.is_dir())]

    def _files(self) -> list[Path]:
        return [p for p in self.root.rglob("*") if p.is_file()]

    def _id(self, inode: int) -> int:
        return self._ids.setdefault(inode, len(self._synced) + len(self._ids) * 1000)

    def _sync_names(self, folder: Path) -> None:
        self._names[folder] = {p.name: self._id(p.stat().st_ino) for p in folder.iterdir() if p.is_file()}

    def created(self, fd: int) -> None:
        """A new file: its inode's number may have been another's."""
        self._ids.pop(os.fstat(fd).st_ino, None)
        self._synced[self._id(os.fstat(fd).st_ino)] = b""

    def synced(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            self._sync_names(path)
        elif path.is_relative_to(self.root):
            self._synced[self._id(os.fstat(fd).st_ino)] = path.read_bytes()

    def note(self, after: str) -> None:
        now = {str(p.relative_to(self.root)): p for p in self._files()}
        everything = {name: p.read_bytes() for name, p in now.items()}
        names = {name: self._synced.get(self._id(p.stat().st_ino), b"") for name, p in now.items()}
        durable = {
            str((folder / name).relative_to(self.root)): self._synced.get(id_, b"")
            for folder, entries in self._names.items()
            for name, id_ in entries.items()
        }
        for kind, files in (("all", everything), ("names", names), ("synced", durable)):
            self.cuts.append(Cut(after, kind, files))


def power_cuts(
    monkeypatch: pytest.MonkeyPatch, root: Path, action: Callable[[], object], unsynced: tuple[str, ...] = ()
) -> tuple[list[Cut], list[Cut], list[str]]:
    """Run the action; the cuts during it, those after its end, and the directories to lay out first."""
    disk = Disk(root, unsynced)
    with monkeypatch.context() as m:
        for name, hook in _hooks(disk).items():
            m.setattr(os, name, hook)
        m.setattr(io, "FileIO", _file_io(disk))
        action()
    before = list(disk.cuts)
    disk.cuts.clear()
    disk.note("the end")
    return before, disk.cuts, disk.directories


def _hooks(disk: Disk) -> Mapping[str, Callable[..., Any]]:
    real = {n: getattr(os, n) for n in ("open", "write", "pwrite", "ftruncate", "fsync", "replace", "unlink")}

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        new = bool(flags & os.O_CREAT) and not Path(path).exists()
        fd: int = real["open"](path, flags, *args, **kwargs)
        if new:
            disk.created(fd)
            disk.note(f"open {Path(path).name}")
        return fd

    def torn(name: str) -> Callable[..., int]:
        def write(fd: int, data: Any, *at: int) -> int:
            view = memoryview(data)
            half = len(view) // 2
            real[name](fd, view[:half], *at)
            disk.note(f"half a {name}")
            rest = [at[0] + half] if at else []
            done = half + real[name](fd, view[half:], *rest)
            disk.note(name)
            return int(done)

        return write

    def fsync(fd: int) -> None:
        real["fsync"](fd)
        disk.synced(fd)
        disk.note("fsync")

    def plain(name: str) -> Callable[..., None]:
        def operation(*args: Any, **kwargs: Any) -> None:
            real[name](*args, **kwargs)
            disk.note(name)

        return operation

    return {
        "open": open_,
        "write": torn("write"),
        "pwrite": torn("pwrite"),
        "fsync": fsync,
        **{name: plain(name) for name in ("ftruncate", "replace", "unlink")},
    }


def _file_io(disk: Disk) -> type[io.FileIO]:
    class WatchedFileIO(io.FileIO):
        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            done = super().write(view[: len(view) // 2])
            disk.note("half a FileIO.write")
            done += super().write(view[done:])
            disk.note("FileIO.write")
            return done

    return WatchedFileIO
