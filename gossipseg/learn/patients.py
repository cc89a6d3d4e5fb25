"""Whose image a case is, so that no patient is in two splits.

What belongs here: patients by name, and by a rule of the site's own. What must not: cases, splits, files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection

_SLICE = re.compile(r"(?P<patient>.*\d.*)[-_]\d+")
_EYE = re.compile(r"(?P<patient>.*\d)[LR]")


def patient_of(case: str) -> str:
    """The patient, as far as a case's name tells.

    A trailing number is a slice of the patient (or a date of one) where a number stands before it, too;
    a trailing L or R behind a number is an eye: PANCREAS_0002-1090 → PANCREAS_0002, 10010_12 → 10010,
    Image_01L → Image_01; hippocampus_034 is a patient as it stands.
    """
    if (eye := _EYE.fullmatch(case)) is not None:
        return eye["patient"]
    while (match := _SLICE.fullmatch(case)) is not None:
        case = match["patient"]
    return case


def patients_of(cases: Collection[str]) -> dict[str, str]:
    """Case → patient, as far as the names of a site's cases tell.

    What all names begin with is the study's, not a patient's: BraTS20_001 and BraTS20_002 are two patients,
    BraTS20_001_7 and BraTS20_001_8 are one.
    """
    first, last = min(cases, default=""), max(cases, default="")  # what they begin with, all between do
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    study = "".join(letter for letter, _ in alike).rstrip("0123456789")
    return {case: study + patient_of(case[len(study) :]) for case in cases}


def matched(pattern: str, case: str) -> str | None:
    """The patient by the site's own rule; None where the case's name does not match it from its beginning."""
    match = re.match(pattern, case)
    return match[1] if match is not None and match[1] else None
