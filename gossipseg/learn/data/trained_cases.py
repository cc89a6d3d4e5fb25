"""Cases that a site has trained on: none of them may count as unseen later without a word.

A data list that was changed, a new data.patient_pattern, or a new file whose name changes what the others'
tell may move a case from training to validation or test. It is scored all the same: the site decides.
"""

from __future__ import annotations

import json
from pathlib import Path

from gossipseg.errors import LocalError
from gossipseg.learn.data.cases import Splits
from gossipseg.store import StateFile

FILE = "trained-on.json"
NAMED = 3
MARK = "splits"
"""A key of the file since there is a file of splits beside it: version 0.2 wrote none."""


class TrainedCases:
    """The names of all cases that were ever in training here."""

    def __init__(self, state_dir: Path, splits: Splits) -> None:
        """Raises LocalError where the file is there and cannot be read."""
        self._file = StateFile(state_dir / FILE)
        document = self._file.load() or {}
        known = document.get("cases")
        self._marked = MARK in document
        self._known = {str(case) for case in known} if isinstance(known, list) else set[str]()
        self._now = {case.id for case in splits.training}
        self.warning = _warning(sorted({c.id for c in (*splits.validation, *splits.test)} & self._known))

    def note(self) -> str:
        """A round was trained: keep the names, where there are new ones. What went wrong, or ""."""
        if self._marked and self._now <= self._known:
            return ""
        try:
            self._file.save({"schema": 1, "cases": sorted(self._known | self._now), MARK: "splits.json"})
        except LocalError as e:
            return str(e)
        self._known |= self._now
        self._marked = True
        return ""


def trained_before_splits(state_dir: Path) -> set[str] | None:
    """The cases that version 0.2 trained on; None where it did not train here. Changes nothing on disk."""
    try:
        document = json.loads((state_dir / FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or MARK in document or not isinstance(document.get("cases"), list):
        return None
    return {str(case) for case in document["cases"]}


def _warning(cases: list[str]) -> str:
    if not cases:
        return ""
    more = f" and {len(cases) - NAMED} more" if len(cases) > NAMED else ""
    are = "case that was trained on is" if len(cases) == 1 else "cases that were trained on are"
    return (
        f"{len(cases)} {are} now in validation or test ({', '.join(cases[:NAMED])}{more}): scores say too "
        "much. Put them back by a data list, or begin anew with an empty state_dir"
    )
