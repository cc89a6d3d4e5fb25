"""The real data lists: no image, and as far as names tell no patient, is in two splits of a site."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gossipseg.lab.plan.splits import redrawn
from gossipseg.learn.data.cases import SPLITS
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.patients import patient_of
from gossipseg.learn.params import DataParams

DATA = Path(os.environ.get("GOSSIPSEG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
SITES = sorted(path.parent for path in DATA.glob("*/*/dataset.json"))

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not SITES, reason=f"no real data at {DATA} (set GOSSIPSEG_DATA)"),
]


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("folder", SITES or [DATA], ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_patient_crosses_a_split(folder: Path, number: int) -> None:
    own = load_cases(DataParams(str(folder)), folder.name)
    splits = redrawn(own, number) if number else own
    assert all(splits.counts[name] > 0 for name in SPLITS)
    patients = {name: {patient_of(case.id) for case in splits.of(name)} for name in SPLITS}
    for one, other in (("training", "validation"), ("training", "test"), ("validation", "test")):
        assert not patients[one] & patients[other], f"{one} and {other}"


def test_names_do_tell_patients_in_the_sets_of_slices() -> None:
    """Else the test above would hold for nothing: these sets have several slices of a patient."""
    for name in ("pancreas_ct_mr/ct_nih", "tumours/brain_mr_flair_lgg", "retina_vessels/chase_db1"):
        folder = DATA / name
        if not folder.is_dir():
            continue
        cases = [case.id for _, case in load_cases(DataParams(str(folder)), name)]
        assert len({patient_of(c) for c in cases}) <= 0.7 * len(cases), name
