"""Who goes into which split, where no list says it: exact shares, patient by patient, drawn from the seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from gossipseg.learn.data.cases import Case, Splits
from gossipseg.learn.data.patients import patients_of
from gossipseg.learn.params import SplitName

ENOUGH_TO_VALIDATE = 3
"""Patients in validation, of which a standard error can be had, where there are enough (`shares`)."""
_TIES: tuple[SplitName, ...] = ("validation", "test", "training")


def shares(
    patients: int, test_fraction: float, validation_fraction: float, into: Sequence[SplitName]
) -> dict[SplitName, int]:
    """The patients of each split, by largest remainder of their shares, at least one in each.

    Validation gets three or more where there are enough: where training then still has at least as many as
    validation and test together, which is so from 10 patients on with the default shares.
    """
    fractions = {"validation": Fraction(str(validation_fraction)), "test": Fraction(str(test_fraction))}
    weight: dict[SplitName, Fraction] = {s: fractions[s] for s in into if s in fractions}
    weight["training"] = 1 - sum(weight.values(), Fraction(0))
    exact = {split: patients * weight[split] for split in into}
    found = {split: math.floor(share) for split, share in exact.items()}
    by_remainder = sorted(into, key=lambda s: (found[s] - exact[s], _TIES.index(s)))
    for split in by_remainder[: patients - sum(found.values())]:
        found[split] += 1
    for split in sorted(into, key=_TIES.index):
        largest = max(into, key=lambda s: found[s])
        if found[split] == 0 and found[largest] > 1:
            found[split], found[largest] = 1, found[largest] - 1
    more = ENOUGH_TO_VALIDATE - found["validation"]
    left = found["training"] - more
    if more > 0 and left >= ENOUGH_TO_VALIDATE + found.get("test", 0):
        found["validation"], found["training"] = ENOUGH_TO_VALIDATE, left
    return found


def drawn_order(patients: Iterable[str], seed: int, site: str) -> list[str]:
    """These patients in the order in which they are drawn: it hangs on the seed, the site and each alone."""
    return sorted(patients, key=lambda p: (hashlib.sha256(f"{seed}/{site}/{p}".encode()).digest(), p))


def placed(
    patients: Sequence[str], there: Mapping[SplitName, int], goal: Mapping[SplitName, int]
) -> dict[str, SplitName]:
    """Each of these patients, in their order, to the split that lacks most: an empty one first of all.

    `there`: patients of each split that stay. `goal`: those that each is to have in the end.
    """
    counts = {split: there.get(split, 0) for split in goal}
    found: dict[str, SplitName] = {}
    for patient in patients:
        split = max(goal, key=lambda s: (counts[s] == 0, goal[s] - counts[s], -_TIES.index(s)))
        counts[split] += 1
        found[patient] = split
    return found


def patients_in(cases: Iterable[Case]) -> dict[str, str]:
    """Case id → patient: as it was told, else as far as the names tell."""
    told = {case.id: case.patient for case in cases}
    guessed = patients_of([id for id, patient in told.items() if patient is None])
    return {id: guessed[id] if patient is None else patient for id, patient in told.items()}


def crossing(splits: Splits) -> list[tuple[str, SplitName, SplitName]]:
    """Patients with cases in two splits, as far as the names tell where nothing else does."""
    patients = patients_in(case for _, case in splits)
    where: dict[str, list[SplitName]] = {}
    for name, case in splits:
        found = where.setdefault(patients[case.id], [])
        if name not in found:
            found.append(name)
    return [(patient, found[0], found[1]) for patient, found in sorted(where.items()) if len(found) > 1]
