"""The predict command: label maps for new images, in the images' own format and grid.

What belongs here: `python -m gossipseg.learn.predict`, and writing label maps. What must not:
inference itself.

PNG and JPEG give a PNG of label values of the same size; NIfTI gives NIfTI with the same grid and affine; a
folder of DICOM slices, or a .dcm file, gives NIfTI. Where the channels are separate files, join their
names by commas.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn import cli
from gossipseg.learn.cases import Case
from gossipseg.learn.data import load_image
from gossipseg.learn.datalist import case_stem
from gossipseg.learn.evaluate import foreground_names, labels_on, predict_logits
from gossipseg.learn.readers import Volume, is_raster
from gossipseg.learn.session import Deployment, load_deployment, must_segment
from gossipseg.store import atomic_write

OUTPUT_MODE = 0o644


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 65 when an image could not be used (the others are done)."""
    parser = cli.parser("predict", "Segment images with the deployment model.")
    parser.add_argument("-o", "--out", required=True, metavar="DIR")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    return cli.run(_predict, parser, argv)


def _predict(args: argparse.Namespace) -> int:
    cases = [_case(text) for text in args.images]
    outputs = _output_paths(cases, Path(args.out))
    deployment = load_deployment(cli.spec_of(args))
    must_segment(deployment)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    show, done, failed = cli.progress(), [], 0
    for i, (case, out) in enumerate(zip(cases, outputs, strict=True)):
        show(f"predicting {case.id}", i / len(cases))
        try:
            done.append(predict_file(deployment, case, out))
        except DataError as e:
            failed = e.exit_code
            print(f"error: {e}", file=sys.stderr)
    show(f"{len(done)} of {len(cases)} images predicted", 1.0)
    cli.write_json({"schema": 1, "kind": "prediction", "round": deployment.round, "outputs": done}, "-")
    return failed


def predict_file(deployment: Deployment, case: Case, out: Path) -> dict[str, Any]:
    """Segment one image and write its label map. Raises DataError for an image the task cannot use."""
    labels, volume = predict_labels(deployment, case)
    write_label_map(out, labels, case.files[0], volume)
    counts = {
        name: int((labels == value).sum()) for value, name in foreground_names(deployment.setup.task).items()
    }
    return {"image": ",".join(map(str, case.files)), "output": str(out), "voxels": counts}


def predict_labels(deployment: Deployment, case: Case) -> tuple[np.ndarray, Volume]:
    """Label values (*spatial) uint8 on the file's own grid, and the image as it is in the file."""
    task, training = deployment.setup.task, deployment.setup.training
    prepared, volume = load_image(case, task)
    logits = predict_logits(deployment.net, prepared.image, task, training, deployment.compute.device)
    return labels_on(prepared.grid, logits, training).numpy(), volume


def write_label_map(out: Path, labels: np.ndarray, source: Path, volume: Volume) -> None:
    """Write label values as PNG or NIfTI, whole or not at all; a NIfTI source lends its header."""
    buffer = io.BytesIO()
    if volume.affine is None:
        Image.fromarray(labels).save(buffer, format="PNG")
        atomic_write(out, buffer.getvalue(), mode=OUTPUT_MODE)
        return
    header = None
    if not source.is_dir() and not source.name.lower().endswith(".dcm"):
        original = nibabel.load(source)
        header = original.header.copy()
        header.set_data_dtype(np.uint8)
        header["cal_min"] = header["cal_max"] = 0
        labels = labels.reshape(original.shape[:3] if labels.ndim == 2 else labels.shape)
    image = nibabel.Nifti1Image(labels, volume.affine, header)
    atomic_write(out, gzip.compress(image.to_bytes(), mtime=0), mode=OUTPUT_MODE)


def _case(text: str) -> Case:
    paths = tuple(Path(t) for t in text.split(",")) if not Path(text).exists() else (Path(text),)
    return Case(case_stem(paths[0].absolute()), paths[0] if len(paths) == 1 else paths)


def _output_paths(cases: Sequence[Case], folder: Path) -> list[Path]:
    seen: dict[Path, Case] = {}
    for case in cases:
        out = folder / (case.id + (".png" if is_raster(case.files[0]) else ".nii.gz"))
        if out in seen:
            raise ConfigError(
                f"would overwrite the output of {seen[out].files[0]}",
                file=case.files[0],
                key="-o",
                value=str(out),
                remedy="Predict images of the same name into different folders.",
            )
        if out.absolute() in [f.absolute() for f in case.files]:
            raise ConfigError(
                "would overwrite the image itself",
                file=case.files[0],
                key="-o",
                value=str(folder),
                remedy="Choose another folder.",
            )
        seen[out] = case
    return list(seen)


if __name__ == "__main__":
    sys.exit(main())
