"""Reading and scoring a CT of 512×512×300 voxels, against nibabel's reading and one distance transform of it.

The image is a NIfTI file, and once more a DICOM series. Prints one JSON document; exits 1 where an aim is
missed. Each side runs in processes of its own, by turns, so that a busy machine slows all alike; times and
peak memory are those of the process.

    python tests/bench/bench_reading.py [--shape X Y Z] [--runs N]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

AIM_RATIO, AIM_BYTES = 3.0, 2_000_000_000
SPACING_MM = (0.8, 0.8, 1.5)
SIDES = ("product", "series", "reference")
"""Ours from NIfTI, ours from DICOM, theirs."""
AFFINE = np.diag([-0.8, -0.8, 1.5, 1.0])


def make(folder: Path, shape: tuple[int, ...]) -> None:
    """A noisy image, the label of an organ with lesions, and a prediction that is a little off."""
    rng = np.random.default_rng(0)
    image = rng.integers(-30, 30, shape, dtype=np.int16)
    label = organ(shape, 0.0)
    image += label.astype(np.int16) * 80
    for name, array in (("image", image), ("label", label), ("predicted", organ(shape, 0.01))):
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / f"{name}.nii.gz")
    write_series(folder / "series", image)


def write_series(folder: Path, image: np.ndarray) -> None:
    """The image as an axial CT series."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    series, study, frame = (generate_uid() for _ in range(3))
    for k in range(image.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        d.SeriesInstanceUID, d.StudyInstanceUID, d.FrameOfReferenceUID = series, study, frame
        d.Modality, d.InstanceNumber, d.SamplesPerPixel = "CT", k + 1, 1
        d.PhotometricInterpretation, d.PixelRepresentation = "MONOCHROME2", 1
        d.BitsAllocated, d.BitsStored, d.HighBit = 16, 16, 15
        d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, SPACING_MM[2] * k], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.RescaleSlope, d.RescaleIntercept = list(SPACING_MM[:2]), 1, 0
        d.Rows, d.Columns = image.shape[1], image.shape[0]
        d.PixelData = np.ascontiguousarray(image[:, :, k].T).tobytes()
        d.save_as(folder / f"{k:04}.dcm", enforce_file_format=True)


def organ(shape: tuple[int, ...], shift: float) -> np.ndarray:
    """Label values: an ellipsoid (1) of a quarter of each side, and twenty balls in it (2)."""
    rng = np.random.default_rng(1)
    out = np.zeros(shape, np.uint8)
    axes = [np.linspace(0, 1, n) for n in shape]
    lesions = [(2, rng.uniform(0.35, 0.65, 3), 0.03) for _ in range(20)]
    for value, centre, radius in [(1, np.full(3, 0.5), 0.25), *lesions]:
        squares = [((a - c - shift) / radius) ** 2 for a, c in zip(axes, centre, strict=True)]
        out[squares[0][:, None, None] + squares[1][:, None] + squares[2] <= 1] = value
    return out


def product(folder: Path, image: str) -> None:
    """What `gossipctl evaluate` does but for the network."""
    import torch

    from gossipseg.learn.data.cases import Case
    from gossipseg.learn.data.dataset import load_label
    from gossipseg.learn.data.readers import read_volume
    from gossipseg.learn.evaluation.scoring import score_case
    from gossipseg.learn.params import TaskParams

    predicted = torch.from_numpy(np.asanyarray(nibabel.load(folder / "predicted.nii.gz").dataobj))
    task = TaskParams("t", 1, {0: "none", 1: "organ", 2: "lesion"}, spatial_dims=3, patch_size=(64, 64, 64))
    case = Case("c", folder / image, folder / "label.nii.gz")

    def work() -> None:
        assert case.label is not None
        volume = read_volume(case.image, 3)
        label = torch.from_numpy(load_label(case.label, volume, case, task))
        score_case("c", predicted, label, task, hd95=True, spacing_mm=volume.spacing_mm)

    report(work)


def reference(folder: Path) -> None:
    """nibabel's reading of the same files, and one distance transform."""
    from scipy.ndimage import distance_transform_edt

    def work() -> None:
        np.asanyarray(nibabel.load(folder / "image.nii.gz").dataobj)
        label = np.asanyarray(nibabel.load(folder / "label.nii.gz").dataobj)
        distance_transform_edt(label == 0, sampling=SPACING_MM)

    report(work)


def report(work: Callable[[], None]) -> None:
    started = time.process_time()
    work()
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def measure(shape: tuple[int, ...], runs: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), shape)
        for _ in range(runs):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--folder", folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[side].append(json.loads(done.stdout))
    seconds = {side: statistics.median(f["seconds"] for f in found[side]) for side in SIDES}
    ours = [side for side in SIDES if side != "reference"]
    peak = {side: max(f["peak_bytes"] for f in found[side]) for side in ours}
    ratio = {side: seconds[side] / seconds["reference"] for side in ours}
    return {
        "benchmark": "reading",
        "shape": shape,
        "seconds": seconds,
        "ratio": ratio,
        "peak_bytes": peak,
        "aims": {"ratio": AIM_RATIO, "peak_bytes": AIM_BYTES},
        "met": {"ratio": max(ratio.values()) <= AIM_RATIO, "peak_bytes": max(peak.values()) <= AIM_BYTES},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "reference":
            reference(options.folder)
        else:
            product(options.folder, "image.nii.gz" if options.side == "product" else "series")
        return 0
    found = measure(tuple(options.shape), options.runs)
    print(json.dumps(found, indent=2))
    return 0 if all(found["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
