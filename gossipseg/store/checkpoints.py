"""The worker's checkpoints: one file a round, the newest few kept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gossipseg.store.atomic import atomic_write, disk_error, make_directory, sweep_temporaries

_NAME = re.compile(r"round-(\d{1,12})\.pt")


class Checkpoints:
    """`round-<n>.pt` in `directory`. Reading never changes it; only save() and prepare() do."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint must be kept")
        self.directory, self._keep = directory, keep

    def prepare(self) -> None:
        """Make the directory and remove a killed writer's leftovers. For the holder of the worker's lock."""
        make_directory(self.directory)
        sweep_temporaries(self.directory)

    def newest(self) -> list[Path]:
        """The checkpoints, newest round first."""
        try:
            names = os.listdir(self.directory)  # noqa: PTH208
        except FileNotFoundError:
            return []
        rounds = [(int(m[1]), name) for name in names if (m := _NAME.fullmatch(name))]
        return [self.directory / name for _, name in sorted(rounds, reverse=True)]

    @staticmethod
    def round_of(path: Path) -> int:
        """The round in a checkpoint's name. Raises ValueError for any other file."""
        if not (m := _NAME.fullmatch(path.name)):
            raise ValueError(f"{path}: not the name of a checkpoint")
        return int(m[1])

    def save(self, round: int, writer: Callable[[BinaryIO], None]) -> Path:
        """Write the checkpoint of a round (replacing it if it is there), then drop those beyond `keep`.

        Raises DiskFull or LocalError: then at least `keep` earlier ones are still there.
        """
        make_directory(self.directory)
        path = self.directory / f"round-{round}.pt"
        atomic_write(path, writer)
        others = [p for p in self.newest() if p != path]
        for old in others[self._keep - 1 :]:
            try:
                old.unlink(missing_ok=True)
            except OSError as e:
                raise disk_error(old, "removed", e) from e
        return path

    def set_aside(self, path: Path) -> Path:
        """Rename a checkpoint that cannot be loaded to NAME.corrupt, so that the one before it is used.

        Raises LocalError.
        """
        copy = path.with_name(path.name + ".corrupt")
        try:
            os.replace(path, copy)  # noqa: PTH105
        except OSError as e:
            raise disk_error(path, "set aside", e) from e
        return copy
