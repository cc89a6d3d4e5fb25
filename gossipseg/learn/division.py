"""Who goes into which split: patient by patient, by the hash of the patient's name.

What belongs here: the splits that are made where no list says them, and whose cases lie in two. What must
not: reading lists and folders (datalist.py), patients by name (patients.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from gossipseg.learn.cases import Case, Splits
from gossipseg.learn.params import SplitName
from gossipseg.learn.patients import patients_of


def split_by_hash(cases: Sequence[Case], test_fraction: float, validation_fraction: float) -> Splits:
    """A split that depends on each case's patient alone: a new one moves no old one to another split, unless
    its name changes what the others' tell (`seen` speaks up then).

    Where chance leaves test or validation empty, the patient with the smallest draw fills it.
    """
    patients = patients_in(cases)
    rest = sorted(set(patients.values()), key=lambda p: (_draw(p), p))
    test = [p for p in rest if _draw(p) < test_fraction] or (rest[:1] if test_fraction > 0 else [])
    rest = rest[len(test) :]
    edge = test_fraction + validation_fraction
    validation = [p for p in rest if _draw(p) < edge] or rest[:1]
    training = rest[len(validation) :]

    def of(chosen: Collection[str]) -> tuple[Case, ...]:
        return tuple(sorted((c for c in cases if patients[c.id] in chosen), key=lambda c: c.id))

    return Splits(of({*training}), of({*validation}), of({*test}))


def carve_validation(splits: Splits, fraction: float) -> Splits:
    """Decathlon lists without `validation`: a share of training, by the hash of the patient."""
    patients = patients_in(case for _, case in splits)
    drawn = sorted({patients[c.id] for c in splits.training}, key=lambda p: (_draw(p), p))
    validation = {p for p in drawn if _draw(p) < fraction} or {*drawn[: len(drawn) > 1]}
    return replace(
        splits,
        training=tuple(c for c in splits.training if patients[c.id] not in validation),
        validation=tuple(c for c in splits.training if patients[c.id] in validation),
    )


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


def _draw(patient: str) -> float:
    """A number in [0, 1) that the name alone determines."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2.0**64
