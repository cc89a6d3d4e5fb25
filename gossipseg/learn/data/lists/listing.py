"""What every form of list comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import SPLITS, Case, Splits
from gossipseg.learn.params import SplitName

Report = Callable[[DataError], None]
Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Listing:
    """The cases of a site, as far as its list or its folders divide them."""

    source: Path
    """The list, or the folder where there is none."""
    told: Splits = field(default_factory=Splits)
    """Cases whose split the list says."""
    undivided: tuple[Case, ...] = ()
    """Those of which it does not."""
    into: tuple[SplitName, ...] = ()
    """The splits that the undivided ones are drawn into."""
    by_hand_into: tuple[SplitName, ...] = SPLITS
    """The splits that a file written by hand may put them into: of a list's `training` nothing is test."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What a dataset.json says beside its cases: name, modality, labels, channels."""
    rests_on: str = ""
    """What in the list says the splits, in words."""

    @property
    def cases(self) -> tuple[Case, ...]:
        """All of them."""
        return (*(case for _, case in self.told), *self.undivided)
