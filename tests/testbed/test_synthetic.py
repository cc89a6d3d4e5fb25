"""Synthetic hospitals: the same from the same seed, different from each other, and a task worth learning."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gossipseg.testbed import dataset, synthetic


def digest(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def small(count: int = 2) -> list[synthetic.Hospital]:
    return [replace(h, cases=(3, 1, 1)) for h in synthetic.hospitals(count)]


def test_the_same_seed_draws_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        synthetic.write_federation(tmp_path / name, small(), seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    mine, other = digest(tmp_path / "a"), digest(tmp_path / "c")
    images = [name for name in mine if "/images/" in name]
    assert images
    assert all(mine[name] != other[name] for name in images)


def test_a_site_is_what_its_list_says(tmp_path: Path) -> None:
    (folder, _) = synthetic.write_federation(tmp_path, small())
    listed = json.loads((folder / "dataset.json").read_text())
    assert {split: len(listed[split]) for split in dataset.SPLITS} == {
        "training": 3,
        "validation": 1,
        "test": 1,
    }
    paths = [case["image"] for split in dataset.SPLITS for case in listed[split]]
    assert len(set(paths)) == 5, "no case is in two splits"
    for split in dataset.SPLITS:
        for case in listed[split]:
            with Image.open(folder / case["image"]) as image, Image.open(folder / case["label"]) as mask:
                assert image.mode == mask.mode == "L"
                assert image.size == mask.size == (synthetic.SIZE_PX, synthetic.SIZE_PX)
                assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_more_hospitals_than_have_names_are_drawn_from_the_seed() -> None:
    made = synthetic.hospitals(6, seed=1)
    assert len({h.name for h in made}) == 6
    assert len({h.scanner for h in made}) == 6
    assert made == synthetic.hospitals(6, seed=1)
    assert made[:3] == list(synthetic.HOSPITALS)


def test_all_three_are_drawn_in_a_few_seconds_and_differ_in_size(tmp_path: Path) -> None:
    begin = time.process_time()
    synthetic.write_federation(tmp_path, synthetic.hospitals(3))
    assert time.process_time() - begin < 6.0
    assert len({h.cases[0] for h in synthetic.HOSPITALS}) == 3


@pytest.mark.parametrize("hospital", synthetic.HOSPITALS, ids=lambda h: h.name)
def test_lesions_are_visible_rare_and_not_found_by_a_threshold(hospital: synthetic.Hospital) -> None:
    contrasts, shares, thresholded = [], [], []
    thresholds = range(20, 250, 10)
    for number in range(12):
        image, mask = synthetic.draw_case(np.random.default_rng([9, number]), hospital)
        inside = mask.astype(bool)
        shares.append(inside.mean())
        contrasts.append(image[inside].mean() - np.median(image[40:72, 40:72][~inside[40:72, 40:72]]))
        thresholded.append([dice(image > t, inside) for t in thresholds])
    assert 0.003 < float(np.mean(shares)) < 0.08
    assert float(np.mean(contrasts)) > 15, "a lesion is brighter than the tissue around it"
    assert np.mean(thresholded, axis=0).max() < 0.4, "but no threshold finds it"


def test_scanners_differ_more_than_their_patients() -> None:
    means = []
    for hospital in synthetic.HOSPITALS:
        tissue, _ = synthetic.draw_anatomy(np.random.default_rng(3), synthetic.Patients(), 112)
        image = synthetic.scan(np.random.default_rng(3), tissue, hospital.scanner)
        means.append(float(image[30:80, 30:80].mean()))
    assert min(abs(a - b) for i, a in enumerate(means) for b in means[:i]) > 8


def dice(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (guess & truth).sum() / max(1, guess.sum() + truth.sum()))
