"""Small data sets on disk for the tests of reading, sampling, scoring and predicting."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from gossipseg.learn.params import DataParams, TaskParams, TrainingParams, WorkerSpec
from gossipseg.nets.params import NetworkParams
from gossipseg.store import Checkpoints

GREY = TaskParams("blobs", 1, {0: "background", 1: "blob"}, patch_size=(32, 32))
RGB = TaskParams("blobs", 3, {0: "background", 1: "blob"}, patch_size=(32, 32), intensity="rgb")
VOLUME = TaskParams(
    "organs", 1, {0: "background", 1: "liver", 2: "spleen"}, spatial_dims=3, patch_size=(16, 16, 16)
)
NETWORK = NetworkParams("unet", width=4, dropout=0.0, options={"channels": [4, 8], "strides": [2]})


def spec(path: Path, task: TaskParams, state: Path | None = None, **changes: Any) -> WorkerSpec:
    """A WorkerSpec over the data at `path`; `data` and `training` update those sections."""
    data = dataclasses.asdict(DataParams(str(path))) | changes.pop("data", {})
    training = dataclasses.asdict(TrainingParams(batch_size=2)) | changes.pop("training", {})
    made = WorkerSpec(
        site="north",
        federation="test",
        seed=7,
        task=dataclasses.asdict(task),
        network=dataclasses.asdict(NETWORK),
        algorithm={"name": "local"},
        training=training,
        data=data,
        device={"device": "cpu", "threads": 1},
        wire_dtype="float16",
        state_dir=str(state or path / "state"),
    )
    return dataclasses.replace(made, **changes)


def spec_file(folder: Path, made: WorkerSpec) -> str:
    """The spec as a file for --spec."""
    file = folder / "spec.json"
    file.write_text(json.dumps(dataclasses.asdict(made)))
    return str(file)


def blob(shape: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image and its label, a bright off-centre box: neither looks the same transposed or turned."""
    rng = np.random.default_rng(seed)
    label = np.zeros(tuple(shape), np.uint8)
    low = [int(rng.integers(1, n // 3)) for n in shape]
    label[tuple(slice(a, a + n // 4 + 3 * i) for i, (a, n) in enumerate(zip(low, shape, strict=True)))] = 1
    image = rng.integers(20, 90, tuple(shape)) + 120 * label
    return image.astype(np.uint8), label


def write_checkpoint(
    made: WorkerSpec, round: int = 3, *, shift: float = 0.0, mix: Mapping[str, float] | None = None
) -> Path:
    """A checkpoint as the trainer leaves it: the weights of the seed, nudged by `shift`, as EMA.

    `mix`: the weights by which a personal model, nudged the other way, predicts with it.
    """
    from gossipseg.learn.engine.build import build_model, build_personal, personal_identity
    from gossipseg.learn.engine.checkpoint import digest
    from gossipseg.learn.settings import read_settings

    settings = read_settings(made)
    state = {name: t + shift for name, t in build_model(settings).state_dict().items()}
    content = {"model": state, "ema": state, "round": round, "steps": 100 * round}
    if mix is not None:
        personal = build_personal(settings)
        own = {name: t * 0.9 - shift for name, t in personal.state_dict().items()}
        figures = {"alone": 0.8, "shared": 0.7, "deployed": 0.85, "patients": 9, "cases": 9}
        content["personal_model"] = {"model": {"model": own, "ema": own}}
        if identity := personal_identity(settings, personal):
            content["personal_model"]["network"] = dict(identity)
        content["mix"] = {"weights": dict(mix), "why": "", "standard_error": 0.01, **figures}
    content["digest"] = digest(content)
    return Checkpoints(Path(made.state_dir) / "checkpoint").save(round, lambda f: torch.save(content, f))


def write_png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def png_site(
    root: Path, counts: Mapping[str, int], *, rgb: bool = False, shape: Sequence[int] = (48, 40)
) -> Path:
    """images/, masks/ and dataset.json with that many cases in each split."""
    lists: dict[str, list[dict[str, str]]] = {}
    seed = 0
    for split, count in counts.items():
        for i in range(count):
            seed += 1
            image, label = blob(shape, seed)
            name = f"{split}_{i}.png"
            write_png(
                root / "images" / name, np.stack([image, image // 2, 255 - image], -1) if rgb else image
            )
            write_png(root / "masks" / name, label)
            lists.setdefault(split, []).append({"image": f"images/{name}", "label": f"masks/{name}"})
    write_list(root, lists)
    return root


def nifti_site(root: Path, counts: Mapping[str, int], affine: np.ndarray | None = None) -> Path:
    """As png_site, with volumes (20, 24, 18) of two classes."""
    lists: dict[str, list[dict[str, str]]] = {}
    seed = 100
    for split, count in counts.items():
        for i in range(count):
            seed += 1
            image, label = blob((20, 24, 18), seed)
            label[-4:, -5:, -3:] = 2
            name = f"{split}_{i}.nii.gz"
            write_nifti(root / "images" / name, (image + 60 * (label == 2)).astype(np.float32), affine)
            write_nifti(root / "labels" / name, label, affine)
            lists.setdefault(split, []).append({"image": f"images/{name}", "label": f"labels/{name}"})
    write_list(root, lists)
    return root


def write_list(root: Path, lists: Mapping[str, Any]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    file = root / "dataset.json"
    file.write_text(json.dumps(dict(lists)))
    return file


def write_dicom_series(folder: Path, volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> Path:
    """(columns, rows, slices) int16 HU as a series of axial CT slices, in shuffled file order."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    order = np.random.default_rng(0).permutation(volume.shape[2])
    for file_number, k in enumerate(order):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        head = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        head.SOPClassUID, head.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        head.SeriesInstanceUID, head.StudyInstanceUID = series, study
        head.Modality, head.InstanceNumber = "CT", int(k) + 1
        head.ImagePositionPatient = [-30.0, -40.0, float(k) * spacing_mm[2]]
        head.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        head.PixelSpacing = [spacing_mm[1], spacing_mm[0]]
        head.SliceThickness = spacing_mm[2]
        head.Columns, head.Rows = volume.shape[0], volume.shape[1]
        head.SamplesPerPixel, head.PhotometricInterpretation = 1, "MONOCHROME2"
        head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 16, 16, 15, 1
        head.RescaleIntercept, head.RescaleSlope = -1024, 1
        head.PixelData = (volume[:, :, k].T + 1024).astype(np.int16).tobytes()
        pydicom.dcmwrite(folder / f"slice{file_number:03d}.dcm", head, enforce_file_format=True)
    return folder
