"""`gossipctl predict`, `evaluate` and `export`: the deployment model (EMA) of this site's newest checkpoint.

What belongs here: starting `python -m gossipseg.learn.…` with this site's settings. What must not: torch.
They read the checkpoint from disk, whether or not the daemon runs.
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipseg.ctl import context
from gossipseg.errors import ConfigError

if TYPE_CHECKING:
    from gossipseg.config import Config

OutputOption = Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")]


def register(app: typer.Typer) -> None:
    for command in (predict, evaluate, export):
        app.command(command.__name__)(command)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Images to segment.", show_default=False)],
    output: OutputOption,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Segment images with this site's model. NIfTI keeps its affine; PNG in, PNG out."""
    arguments = ["-o", str(output), "--", *map(str, images)]
    return run(context.load_config(config), "predict", arguments, None if json else _prediction_lines)


def evaluate(
    split: Annotated[str, typer.Option(help="training, validation or test.")] = "test",
    csv: Annotated[
        Path | None, typer.Option(help="Also write the table to this file.", show_default=False)
    ] = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Dice and HD95 per case and class of this site's model on one of its splits."""
    if split not in ("training", "validation", "test"):
        raise ConfigError(
            "is not one of training, validation, test",
            key="--split",
            value=split,
            remedy="Name one of the three.",
        )
    arguments = ["--split", split, *(["--json", "-"] if json else []), *(["--csv", str(csv)] if csv else [])]
    return run(context.load_config(config), "evaluate", arguments)


def export(
    output: OutputOption, config: context.ConfigOption = None, json: context.JsonOption = False
) -> int:
    """Write model.pt (plain state dict), safetensors and a MONAI bundle of this site's model."""
    return run(context.load_config(config), "export", ["-o", str(output)], None if json else _export_lines)


def _prediction_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for done in document.get("outputs", []):
        voxels = ", ".join(f"{count} voxels {name}" for name, count in done.get("voxels", {}).items())
        yield f"{done.get('image')} -> {done.get('output')}: {voxels or 'nothing found'}"
    yield f"with the model of round {document.get('round')}"


def _export_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for key, value in document.items():
        if key not in ("schema", "kind"):
            yield f"{key}: {value}"


def command_line(module: str, arguments: Sequence[str]) -> list[str]:
    """How a learn module is started; it reads its WorkerSpec as JSON from standard input."""
    return [sys.executable, "-m", f"gossipseg.learn.{module}", "--spec", "-", *arguments]


def spec_json(config: Config) -> str:
    """The WorkerSpec of a site, as the learn modules read it."""
    from gossipseg import config as configuration

    return jsonlib.dumps(dataclasses.asdict(configuration.worker_spec(config)))


def run(
    config: Config,
    module: str,
    arguments: Sequence[str],
    to_lines: Callable[[Mapping[str, Any]], Iterable[str]] | None = None,
) -> int:
    """Run a learn module to its end and return its exit code; progress and errors pass through.

    Where `to_lines` is given, the JSON document that the module prints is shown as those lines.
    """
    captured = subprocess.PIPE if to_lines else None
    process = subprocess.Popen(
        command_line(module, arguments), stdin=subprocess.PIPE, stdout=captured, text=True
    )
    try:
        printed, _ = process.communicate(spec_json(config))
    except KeyboardInterrupt:
        process.wait()  # it got the same signal, and may have a file to finish
        raise
    if to_lines and printed:
        _show(printed, to_lines)
    # A death by signal N is reported as shells do it.
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _show(printed: str, to_lines: Callable[[Mapping[str, Any]], Iterable[str]]) -> None:
    try:
        document = jsonlib.loads(printed)
    except ValueError:
        print(printed, end="")
        return
    for line in to_lines(document):
        print(line)
