"""A case of a site, and its cases by split.

What belongs here: the two types. What must not: where cases come from (datalist.py), who goes into which
split (division.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gossipseg.learn.params import SplitName

SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True, slots=True)
class Case:
    """One image with its label. `label` is None only in the test split, or where no labels are needed."""

    id: str
    image: Path | tuple[Path, ...]
    """A file, a folder of DICOM slices, or one single-channel file per channel."""
    label: Path | None = None
    patient: str | None = None
    """As the data list or data.patient_pattern has it; None leaves it to the names."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The image's files, also where it is only one."""
        return self.image if isinstance(self.image, tuple) else (self.image,)


@dataclass(frozen=True, slots=True)
class Splits:
    """The cases of a site."""

    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()

    def of(self, name: SplitName) -> tuple[Case, ...]:
        """The cases of the split with this name."""
        return {"training": self.training, "validation": self.validation, "test": self.test}[name]

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by split name."""
        return {name: len(self.of(name)) for name in SPLITS}

    def __iter__(self) -> Iterator[tuple[SplitName, Case]]:
        return ((name, case) for name in SPLITS for case in self.of(name))
