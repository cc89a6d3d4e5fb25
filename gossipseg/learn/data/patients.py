"""Whose image a case is, so that no patient is in two splits."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection

_EYE = re.compile(r"(.*\d)[LR]")
_PART = re.compile(r"(?:.*\d.*|[lr]|o[dsu]|left|right|e[ds])", re.IGNORECASE)
"""A token that tells parts of one patient apart: a number in it, an eye, a side, a phase of the heart."""


def patient_of(case: str) -> str:
    """The patient, as far as a case's name tells.

    It ends with the first token that bears a number, where a later one is of a part of the patient: a slice,
    a frame, a date, an eye. PANCREAS_0002-1090 → PANCREAS_0002, patient001_frame01 → patient001,
    sub-01_ses-02_T1w → sub-01, 01_OD → 01, Image_01L → Image_01; hippocampus_034 and 01_dr stand as they are.
    """
    ends = [match.end() for match in re.finditer(r"[^-_]+", case)]
    tokens = re.findall(r"[^-_]+", case)
    first = next((i for i, token in enumerate(tokens) if re.search(r"\d", token)), None)
    if first is None:
        return case
    if any(_PART.fullmatch(token) for token in tokens[first + 1 :]):
        case = case[: ends[first]]
    eye = _EYE.fullmatch(case)
    return case if eye is None else eye[1]


def patients_of(cases: Collection[str]) -> dict[str, str]:
    """Case → patient, as far as the names of all of a site's cases tell.

    What all names of a kind (alike up to the first digit) begin with is the study's, not a patient's:
    BraTS20_001 and BraTS20_002 are two patients, BraTS20_001_7 and BraTS20_001_8 are one. So p07_1 and p07_2
    are two where there is no p08: names cannot tell a study from a single patient.
    """
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for case in cases:
        kinds[re.split(r"\d", case, maxsplit=1)[0]].append(case)
    found: dict[str, str] = {}
    for names in kinds.values():
        study = _study(names)
        found |= {name: study + patient_of(name[len(study) :]) for name in names}
    return found


def _study(names: Collection[str]) -> str:
    """What all of them begin with, without the digits at its end."""
    first, last = min(names), max(names)  # what these two begin with, all between do
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in alike).rstrip("0123456789")


def matched(pattern: str, case: str) -> str | None:
    """The patient by the site's own rule; None where the case's name does not match it from its beginning."""
    match = re.match(pattern, case)
    return match[1] if match is not None and match[1] else None
