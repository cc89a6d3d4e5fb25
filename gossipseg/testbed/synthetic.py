"""Synthetic hospitals: one segmentation task seen through scanners that differ.

Each case is a slice through a body: a rim of skin and fat, an organ, a pair of dark chambers, bright vessels,
and lesions. Vessels are as bright as lesions but thin; cysts are as large but smooth and dark. So neither
brightness nor size alone finds a lesion. A hospital's scanner bends the contrast, blurs, loses resolution,
adds a shading and Rician noise. Its patients have lesions of another size and strength.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Picture = NDArray[np.float32]
Point = NDArray[np.float64]

TASK_NAME = "synthetic_lesions"
LABELS = {0: "background", 1: "lesion"}
SIZE_PX = 112
_SKIN, _FAT = 0.78, 0.27


@dataclass(frozen=True, slots=True)
class Scanner:
    """How a hospital turns tissue (0..1) into grey values."""

    gamma: float = 1.0
    """Contrast curve: tissue ** gamma."""
    gain: float = 1.0
    noise_sd: float = 0.03
    blur_px: float = 0.5
    resolution: float = 1.0
    """Share of the pixels along an axis that the scanner really resolves; the image is then enlarged
    again."""
    shading: float = 0.1
    """Amplitude of the smooth coil shading."""


@dataclass(frozen=True, slots=True)
class Patients:
    """What the lesions of a hospital's patients look like."""

    lesions: tuple[int, int] = (1, 3)
    radius_px: tuple[float, float] = (6.0, 11.0)
    strength: tuple[float, float] = (0.20, 0.34)
    """Brightness above the organ's."""


@dataclass(frozen=True, slots=True)
class Hospital:
    """A synthetic site."""

    name: str
    cases: tuple[int, int, int]
    """Training, validation, test."""
    scanner: Scanner = Scanner()
    patients: Patients = Patients()
    seen: Patients | None = None
    """Its training cases, where they are not like the patients that it will see (validation and test)."""


HOSPITALS = (
    Hospital("north", (48, 8, 16), Scanner(1.0, 1.0, 0.035, 0.5, 1.0, 0.10), Patients()),
    Hospital(
        "lakeside",
        (24, 8, 16),
        Scanner(1.3, 1.1, 0.045, 0.6, 0.65, 0.13),
        Patients((1, 4), (5.5, 10.0), (0.20, 0.32)),
    ),
    Hospital(
        "valley",
        (4, 6, 16),
        Scanner(0.75, 0.85, 0.045, 0.7, 0.75, 0.13),
        Patients((1, 3), (5.5, 10.0), (0.22, 0.34)),
        seen=Patients((1, 1), (10.0, 13.0), (0.38, 0.46)),
    ),
)


def hospitals(count: int, seed: int = 0) -> list[Hospital]:
    """The three named hospitals, then more with scanners drawn from the seed."""
    made = list(HOSPITALS[:count])
    for index in range(len(made), count):
        rng = np.random.default_rng([seed, 7, index])
        scanner = Scanner(
            gamma=float(rng.uniform(0.6, 1.6)),
            gain=float(rng.uniform(0.8, 1.15)),
            noise_sd=float(rng.uniform(0.03, 0.06)),
            blur_px=float(rng.uniform(0.4, 1.0)),
            resolution=float(rng.uniform(0.6, 1.0)),
            shading=float(rng.uniform(0.05, 0.25)),
        )
        cases = (int(rng.integers(6, 40)), 6, 12)
        made.append(Hospital(f"site{index + 1}", cases, scanner))
    return made


def write_federation(
    root: Path, sites: list[Hospital], *, seed: int = 0, size_px: int = SIZE_PX
) -> list[Path]:
    """Write one folder per hospital under `root`; returns the folders, in the order of `sites`."""
    return [write_site(root / s.name, s, seed=seed, index=i, size_px=size_px) for i, s in enumerate(sites)]


def write_site(folder: Path, hospital: Hospital, *, seed: int, index: int, size_px: int = SIZE_PX) -> Path:
    """Write images/, masks/ and dataset.json (8-bit grey PNG; masks are 0/255)."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    number = 0
    for split, count in zip(lists, hospital.cases, strict=True):
        for _ in range(count):
            patients = (hospital.seen if split == "training" else None) or hospital.patients
            rng = np.random.default_rng([seed, index, number])
            image, mask = draw_case(rng, replace(hospital, patients=patients), size_px)
            name = f"case_{number:03d}.png"
            Image.fromarray(image).save(folder / "images" / name)
            Image.fromarray(mask * np.uint8(255)).save(folder / "masks" / name)
            lists[split].append({"image": f"images/{name}", "label": f"masks/{name}"})
            number += 1
    about = {
        "name": f"{TASK_NAME}/{hospital.name}",
        "modality": {"0": "synthetic"},
        "channels": 1,
        "labels": {str(value): name for value, name in LABELS.items()},
        **lists,
    }
    (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return folder


def draw_case(
    rng: np.random.Generator, hospital: Hospital, size_px: int = SIZE_PX
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image (0..255) and its mask (0/1), both of shape (size_px, size_px)."""
    tissue, mask = draw_anatomy(rng, hospital.patients, size_px)
    return scan(rng, tissue, hospital.scanner), mask


def draw_anatomy(
    rng: np.random.Generator, patients: Patients, size_px: int
) -> tuple[Picture, NDArray[np.uint8]]:
    """Tissue in 0..1 and the lesion mask."""
    grid = np.mgrid[:size_px, :size_px].astype(np.float32) - (size_px - 1) / 2
    middle = rng.uniform(-3, 3, 2)
    body_radii = size_px * rng.uniform((0.40, 0.34), (0.46, 0.41))
    turn = rng.uniform(-0.25, 0.25)
    body = _blob(rng, grid, middle, body_radii, turn, wobble=0.04)
    fat = _blob(rng, grid, middle, body_radii - 2.0, turn, wobble=0.0)
    organ = _blob(rng, grid, middle, body_radii * rng.uniform(0.80, 0.87), turn, wobble=0.05)
    tissue = np.zeros((size_px, size_px), np.float32)
    tissue = _paint(tissue, body, _SKIN)
    tissue = _paint(tissue, fat, _FAT)
    level = float(rng.uniform(0.34, 0.48))
    tissue = _paint(tissue, organ, level)
    tissue += organ * (_texture(rng, size_px, 5.0) * 0.035 + _texture(rng, size_px, 1.5) * 0.03)
    tissue = _chambers(rng, tissue, grid, middle, body_radii, turn)
    tissue = _vessels(rng, tissue, grid, organ, patients)
    tissue = _cysts(rng, tissue, grid, middle, body_radii)
    return _lesions(rng, tissue, grid, middle, body_radii, organ, level, patients)


def scan(rng: np.random.Generator, tissue: Picture, scanner: Scanner) -> NDArray[np.uint8]:
    """What the scanner records: contrast, shading, blur, lost resolution, Rician noise."""
    size_px = tissue.shape[0]
    image = np.clip(tissue, 0, 1) ** scanner.gamma * scanner.gain
    image = image * (1 + scanner.shading * _texture(rng, size_px, size_px / 4))
    image = ndimage.gaussian_filter(image, scanner.blur_px + 0.5 * (1 / scanner.resolution - 1))
    coarse = max(8, round(size_px * scanner.resolution))
    image = ndimage.zoom(image, coarse / size_px, order=1)
    noise = rng.normal(0, scanner.noise_sd, (2, *image.shape))
    image = np.hypot(image + noise[0], noise[1])
    image = ndimage.zoom(image, size_px / image.shape[0], order=1)
    grey: NDArray[np.uint8] = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return grey


# ---------------------------------------------------------------- shapes


def _blob(
    rng: np.random.Generator,
    grid: Picture,
    middle: Point,
    radii: Point,
    turn: float,
    wobble: float,
    softness_px: float = 0.7,
) -> Picture:
    """An ellipse whose outline wanders by `wobble` of its radius; 1 inside, 0 outside, soft edge."""
    y, x = grid[0] - middle[0], grid[1] - middle[1]
    u = (np.cos(turn) * y + np.sin(turn) * x) / radii[0]
    v = (-np.sin(turn) * y + np.cos(turn) * x) / radii[1]
    angle = np.arctan2(v, u)
    outline = np.ones_like(angle)
    for wave in range(2, 6):
        outline += rng.normal(0, wobble) / (wave - 1) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    distance_px = (outline - np.hypot(u, v)) * float(np.mean(radii))
    inside: Picture = (1 / (1 + np.exp(-np.clip(distance_px / (softness_px / 2), -30, 30)))).astype(
        np.float32
    )
    return inside


def _paint(picture: Picture, shape: Picture, value: float) -> Picture:
    return picture + shape * (value - picture)


def _texture(rng: np.random.Generator, size_px: int, scale_px: float) -> Picture:
    """Smooth noise of unit standard deviation and about `scale_px` grain."""
    small = max(4, round(size_px / max(1.0, scale_px / 1.5)))
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (small, small)), 1.0, mode="wrap")
    noise = ndimage.zoom(noise, size_px / small, order=1)[:size_px, :size_px]
    unit: Picture = (noise / max(float(noise.std()), 1e-6)).astype(np.float32)
    return unit


def _chambers(
    rng: np.random.Generator,
    tissue: Picture,
    grid: Picture,
    middle: Point,
    body: Point,
    turn: float,
) -> Picture:
    """Two dark chambers beside the midline."""
    for side in (-1, 1):
        place = middle + body * np.array([rng.uniform(-0.12, 0.08), side * rng.uniform(0.13, 0.19)])
        radii = body * rng.uniform((0.20, 0.07), (0.30, 0.12))
        shape = _blob(rng, grid, place, radii, turn + side * rng.uniform(0.1, 0.4), wobble=0.08)
        tissue = _paint(tissue, shape, 0.14)
    return tissue


def _vessels(
    rng: np.random.Generator, tissue: Picture, grid: Picture, organ: Picture, patients: Patients
) -> Picture:
    """Thin bright curves, as bright as a lesion: arcs of large circles."""
    for _ in range(int(rng.integers(4, 7))):
        centre = rng.uniform(-0.45, 0.45, 2) * tissue.shape[0]
        radius = rng.uniform(0.15, 0.5) * tissue.shape[0]
        y, x = grid[0] - centre[0], grid[1] - centre[1]
        width = rng.uniform(0.9, 1.5)
        line = np.exp(-(((np.hypot(y, x) - radius) / width) ** 2))
        sector = np.cos(np.arctan2(y, x) - rng.uniform(0, 2 * np.pi)) > rng.uniform(0.2, 0.8)
        tissue = tissue + organ * line * sector * np.float32(1.2 * rng.uniform(*patients.strength))
    return tissue.astype(np.float32)


def _cysts(
    rng: np.random.Generator,
    tissue: Picture,
    grid: Picture,
    middle: Point,
    body: Point,
) -> Picture:
    """Round, smooth, dark or bright-rimmed: as large as a lesion, and not one."""
    for _ in range(int(rng.integers(1, 4))):
        place = _place(rng, middle, body)
        radius = rng.uniform(3.0, 7.0)
        shape = _blob(rng, grid, place, np.array([radius, radius]), 0.0, wobble=0.0)
        rim = _blob(rng, grid, place, np.array([radius + 1.6, radius + 1.6]), 0.0, wobble=0.0) - shape
        tissue = _paint(tissue, shape, float(rng.uniform(0.18, 0.30)))
        tissue = tissue + rim * np.float32(rng.uniform(0.0, 0.25))
    return tissue


def _lesions(
    rng: np.random.Generator,
    tissue: Picture,
    grid: Picture,
    middle: Point,
    body: Point,
    organ: Picture,
    tissue_level: float,
    patients: Patients,
) -> tuple[Picture, NDArray[np.uint8]]:
    """Irregular, mottled, brighter than the organ, with a soft edge."""
    mask = np.zeros(tissue.shape, bool)
    for _ in range(int(rng.integers(patients.lesions[0], patients.lesions[1] + 1))):
        radius = rng.uniform(*patients.radius_px)
        radii = radius * rng.uniform(0.75, 1.25, 2)
        shape = _blob(rng, grid, _place(rng, middle, body), radii, rng.uniform(0, np.pi), 0.13, 1.5) * organ
        mottle = 1 + 0.2 * _texture(rng, tissue.shape[0], 3.0)
        bright = tissue_level + rng.uniform(*patients.strength) * mottle
        tissue = tissue + shape * (np.maximum(bright, tissue) - tissue)
        mask |= shape > 0.5
    return tissue.astype(np.float32), mask.astype(np.uint8)


def _place(rng: np.random.Generator, middle: Point, body: Point) -> Point:
    """Somewhere in the organ, away from its edge."""
    angle, reach = rng.uniform(0, 2 * np.pi), 0.62 * np.sqrt(rng.uniform(0.05, 1.0))
    place: Point = middle + body * reach * np.array([np.cos(angle), np.sin(angle)])
    return place
