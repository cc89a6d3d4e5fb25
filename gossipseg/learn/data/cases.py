"""A case of a site, and its cases by split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

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
class Origin:
    """Who said which case is in which split."""

    how: Literal["list", "by hand", "drawn"] = "list"
    text: str = ""
    """In words."""
    file: Path | None = None
    """The site's splits.json, where it is used; it need not be there yet."""
    document: Any = None
    """What that file is to hold from now on; None: it is as it should be."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The cases of a site."""

    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    origin: Origin = field(default_factory=Origin, compare=False)

    @classmethod
    def of_lists(cls, lists: Mapping[Any, Sequence[Case]]) -> Splits:
        """By split name; a name that is not there has no cases."""
        training, validation, test = (tuple(lists.get(name, ())) for name in SPLITS)
        return cls(training, validation, test)

    def of(self, name: SplitName) -> tuple[Case, ...]:
        """The cases of the split with this name."""
        return {"training": self.training, "validation": self.validation, "test": self.test}[name]

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by split name."""
        return {name: len(self.of(name)) for name in SPLITS}

    def __iter__(self) -> Iterator[tuple[SplitName, Case]]:
        return ((name, case) for name in SPLITS for case in self.of(name))
