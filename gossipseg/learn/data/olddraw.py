"""How version 0.2 drew splits, so that a site that trained with it goes on with its division.

Each patient was drawn by itself, by the hash of its name: no state was kept, and shares were left to chance.
Nothing is drawn so any more. This module can go when no state directory of 0.2 is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from gossipseg.learn.data.cases import SPLITS
from gossipseg.learn.data.division import patients_in
from gossipseg.learn.data.lists.listing import Listing
from gossipseg.learn.params import DataParams, SplitName


def old_division(listing: Listing, data: DataParams, trained: Collection[str]) -> dict[str, SplitName] | None:
    """Case → split of the undivided cases as 0.2 drew them; None where that is not what was trained on.

    `trained`: the cases that were ever in training.
    """
    found = _drawn(listing, data)
    seen = [case for case in found if case in trained]
    agrees = bool(seen) and all(found[case] == "training" for case in seen)
    return found if agrees else None


def _drawn(listing: Listing, data: DataParams) -> dict[str, SplitName]:
    patients = patients_in(listing.cases)
    whose = {case.id: patients[case.id] for case in listing.undivided}
    rest = sorted(set(whose.values()), key=lambda p: (_draw(p), p))
    where: dict[str, SplitName] = {}
    edge = data.validation_fraction
    if "test" in listing.into:
        test = [p for p in rest if _draw(p) < data.test_fraction] or (rest[:1] if data.test_fraction else [])
        where |= dict.fromkeys(test, SPLITS[2])
        rest, edge = rest[len(test) :], edge + data.test_fraction
        validation = [p for p in rest if _draw(p) < edge] or rest[:1]
    else:
        validation = [p for p in rest if _draw(p) < edge] or rest[: len(rest) > 1]
    where |= dict.fromkeys(validation, SPLITS[1])
    return {case: where.get(patient, SPLITS[0]) for case, patient in whose.items()}


def _draw(patient: str) -> float:
    """A number in [0, 1) that the name alone determines."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2.0**64
