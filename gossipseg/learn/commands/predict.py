"""The predict command: label maps for new images, in the images' own format and grid.

An image is a file or a folder with a DICOM series. Where the channels are separate files, join their names
by commas.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gossipseg.errors import ConfigError, DataError, LocalError
from gossipseg.learn.commands import cli
from gossipseg.learn.data import own_values
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.data.dataset import load_image
from gossipseg.learn.data.formats.kinds import Kind, case_stem, kind_of
from gossipseg.learn.data.formats.volume import Volume
from gossipseg.learn.data.formats.writing import encode, possible_suffixes, suffix_for
from gossipseg.learn.data.memory import memory_for
from gossipseg.learn.data.splitfile import keep_of
from gossipseg.learn.deploy.deployment import Deployment, load_deployment, must_segment
from gossipseg.learn.deploy.predicting import logits_of
from gossipseg.learn.evaluation.evaluate import foreground_names, labels_on
from gossipseg.learn.settings import WorkerSettings
from gossipseg.store import atomic_write

OUTPUT_MODE = 0o644
FORMATS = ("auto", "nifti", "dicom-seg")
DICOM_SEG = "dicom-seg"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 65 when an image could not be used (the others are done)."""
    parser = cli.parser("predict", "Segment images with the deployment model.")
    parser.add_argument("-o", "--out", required=True, metavar="DIR")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="auto: the image's own.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    return cli.run(_predict, parser, argv)


def _predict(args: argparse.Namespace) -> int:
    cases = [_case(text) for text in args.images]
    folder = Path(args.out)
    _refuse_overwriting(cases, folder, args.format)
    deployment = load_deployment(cli.spec_of(args))
    must_segment(deployment)
    _refuse_own_files(cases, folder, args.format, deployment.settings)
    values, said = own_values.of_site(deployment.settings)
    folder.mkdir(parents=True, exist_ok=True)
    show, done, failed = cli.progress(), [], 0
    for i, case in enumerate(cases):
        show(f"predicting {case.id}", i / len(cases))
        try:
            stem = folder / case.id
            done.append(predict_file(deployment, case, stem, format=args.format, values=values))
        except (DataError, LocalError) as e:
            failed = e.exit_code
            print(f"error: {e}", file=sys.stderr)
    show(f"{len(done)} of {len(cases)} images predicted", 1.0)
    document = {"schema": 1, "kind": "prediction", "round": deployment.round, "outputs": done}
    if args.format != DICOM_SEG:
        document |= {"values": {str(value): written for value, written in values.items()}}
        document |= {"note": said} if said else {}
    cli.write_json(document, "-")
    return failed


def predict_file(
    deployment: Deployment,
    case: Case,
    stem: Path,
    *,
    format: str = "auto",
    values: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Segment one image and write its label map as `stem` with the suffix of its format.

    `values`: what each label value is written as; None: itself. Raises DataError for an image the task cannot
    use, or one that the format cannot hold.
    """
    labels, volume = predict_labels(deployment, case)
    task, source = deployment.settings.task, case.files[0]
    names = foreground_names(task)
    suffix, note = suffix_for(source, volume, format)
    out = stem.with_name(stem.name + suffix)
    if format == DICOM_SEG:
        _write_dicom_seg(out, labels, names, source, volume)
    else:
        written = labels if values is None else written_values(labels, values)
        atomic_write(out, encode(written, source, volume, suffix), mode=OUTPUT_MODE)
    counts = {name: int((labels == value).sum()) for value, name in names.items()}
    notes = [n for n in (note, *volume.notes) if n]
    told: dict[str, Any] = {"image": ",".join(map(str, case.files)), "output": str(out), "voxels": counts}
    told["format"] = DICOM_SEG if format == DICOM_SEG else suffix
    return told | ({"note": "; ".join(notes)} if notes else {})


def predict_labels(deployment: Deployment, case: Case) -> tuple[np.ndarray, Volume]:
    """Label values (*spatial) uint8 on the file's own grid, and the image as it is in the file."""
    task, training = deployment.settings.task, deployment.settings.training
    with memory_for(case):
        prepared, volume = load_image(case, task)
        logits = logits_of(deployment, prepared.image, case.files[0])
        return labels_on(prepared.grid, logits, training).numpy(), volume


def written_values(labels: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """Label values as the site's files have them, in the smallest type that holds them all.

    A label value that is not in `values` stands for itself.
    """
    table = np.arange(256)
    for label, value in values.items():
        table[label] = value
    kind = np.uint8 if max(values.values(), default=0) <= 255 else np.uint16
    mapped: np.ndarray = table.astype(kind)[labels]
    return mapped


def _write_dicom_seg(
    out: Path, labels: np.ndarray, names: dict[int, str], source: Path, volume: Volume
) -> None:
    if kind_of(source) is not Kind.DICOM:
        raise DataError(
            "is no DICOM image, and a DICOM segmentation refers to one",
            file=source,
            key="--format",
            value=DICOM_SEG,
            remedy="Leave --format out: the label map comes back in the image's own format.",
        )
    from gossipseg.learn.data.formats.dicom.seg_writer import write_dicom_seg

    write_dicom_seg(out, labels, names, source, volume)


def _case(text: str) -> Case:
    paths = tuple(Path(t) for t in text.split(",")) if not Path(text).exists() else (Path(text),)
    return Case(case_stem(paths[0].absolute()), paths[0] if len(paths) == 1 else paths)


def _refuse_overwriting(cases: Sequence[Case], folder: Path, format: str) -> None:
    """No two images may have one output, nor may an output be an image. Raises ConfigError."""
    seen: dict[Path, Case] = {}
    inputs = {f.absolute().resolve() for case in cases for f in case.files}
    for case in cases:
        outputs = [folder / (case.id + suffix) for suffix in possible_suffixes(case.files[0], format)]
        for out in outputs:
            if out in seen:
                remedy = "Predict images of the same name into different folders."
                raise _overwriting(f"the output of {seen[out].files[0]}", case, out, remedy)
            if out.absolute().resolve() in inputs:
                raise _overwriting("the image itself", case, folder, "Choose another folder.")
        seen.update(dict.fromkeys(outputs, case))


def _refuse_own_files(cases: Sequence[Case], folder: Path, format: str, settings: WorkerSettings) -> None:
    """No output may take the place of a file that may be an image or a label: one of the site's own cases,
    or any beside an image that is predicted. Raises ConfigError."""
    where = folder.absolute().resolve()
    beside_images = where in {f.absolute().resolve().parent for case in cases for f in case.files}
    known: frozenset[Path] | None = None
    for case in cases:
        for suffix in possible_suffixes(case.files[0], format):
            out = (where / (case.id + suffix)).resolve()
            if not out.exists():
                continue
            if known is None:
                try:
                    known = _files_of_site(settings)
                except (DataError, LocalError) as e:
                    what = f"{out}, and whether that is an image or a label of this site is not known: {e}"
                    raise _overwriting(what, case, folder, "Choose a new folder, or remove the file.") from e
            if beside_images or out in known:
                what = f"{out}, which may be an image or a label"
                raise _overwriting(what, case, folder, "Choose a folder without images and labels.")


def _overwriting(what: str, case: Case, place: Path, remedy: str) -> ConfigError:
    return ConfigError(
        f"would overwrite {what}", file=case.files[0], key="-o", value=str(place), remedy=remedy
    )


def _files_of_site(settings: WorkerSettings) -> frozenset[Path]:
    """The images and labels of the site; none where its data are away.

    Raises DataError, LocalError where they are there and cannot be listed.
    """
    if not Path(settings.data.path).exists():
        return frozenset()
    splits = load_cases(settings.data, settings.spec.site, needs_labels=False, keep=keep_of(settings.spec))
    files = [f for _, case in splits for f in (*case.files, *([case.label] if case.label else []))]
    return frozenset(f.absolute().resolve() for f in files)


if __name__ == "__main__":
    sys.exit(main())
