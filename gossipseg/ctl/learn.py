"""`gossipctl predict`, `evaluate` and `export`: the deployment model (EMA) of this site's newest checkpoint.

They read the checkpoint from disk, whether or not the daemon runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as jsonlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from gossipseg.children import directory, environment, python_module
from gossipseg.ctl import context
from gossipseg.ctl import output as out
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
    format: Annotated[str, typer.Option(help="auto (the image's own), nifti or dicom-seg.")] = "auto",
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Segment images with this site's model. Label maps come back in the image's own format and place."""
    _need("--format", format, ("auto", "nifti", "dicom-seg"))
    asked = [] if format == "auto" else ["--format", format]
    arguments = ["-o", str(output), *asked, "--", *map(str, images)]
    return run(context.load_config(config), "predict", arguments, _prediction_lines, json=json)


def evaluate(
    split: Annotated[str, typer.Option(help="training, validation or test.")] = "test",
    csv: Annotated[
        Path | None, typer.Option(help="Also write the table to this file.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Tolerance of the surface Dice (NSD), in mm; 2 if not given.", show_default=False
        ),
    ] = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Dice, surface Dice and HD95 of this site's model on one of its splits, and what it missed."""
    _need("--split", split, ("training", "validation", "test"))
    arguments = ["--split", split, *(["--json", "-"] if json else []), *(["--csv", str(csv)] if csv else [])]
    arguments += [] if tolerance is None else ["--tolerance", str(tolerance)]
    return run(context.load_config(config), "evaluate", arguments, json=json)


def export(
    output: OutputOption,
    single: Annotated[
        bool, typer.Option("--single", help="The best single model, where several predict together.")
    ] = False,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Write model.pt (plain state dict), safetensors and, where one can read the images, a MONAI bundle."""
    arguments = ["-o", str(output), *(["--single"] if single else [])]
    return run(context.load_config(config), "export", arguments, _export_lines, json=json)


def _need(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"is not one of {', '.join(allowed)}", key=option, value=value, remedy="Name one of the three."
        )


def _prediction_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for done in document.get("outputs", []):
        voxels = ", ".join(f"{count} voxels {name}" for name, count in done.get("voxels", {}).items())
        yield f"{done.get('image')} -> {done.get('output')}: {voxels or 'nothing found'}"
        if done.get("note"):
            yield f"  {done['note']}"
    yield f"with the model of round {document.get('round')}{_values_text(document)}"


def _values_text(document: Mapping[str, Any]) -> str:
    """Which label values are written as others."""
    other = {k: v for k, v in document.get("values", {}).items() if str(v) != k}
    text = "; label values as in this site's own labels: " if other else ""
    text += ", ".join(f"{label} as {written}" for label, written in other.items())
    return text + (f"; {document['note']}" if document.get("note") else "")


def _export_lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield from map(str, document.get("files", []))
    yield f"the model of {document.get('site')} after round {document.get('round')}"
    if document.get("reason"):
        yield f"  {document['reason']}"


def command_line(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that starts a learn module; the module reads its WorkerSpec as JSON from standard input."""
    return [*python_module("gossipseg.ends"), f"gossipseg.learn.commands.{module}", "--spec", "-", *arguments]


def spec_json(config: Config) -> str:
    """The WorkerSpec of a site, as the learn modules read it."""
    from gossipseg import config as configuration

    return jsonlib.dumps(dataclasses.asdict(configuration.worker_spec(config)))


def run(
    config: Config,
    module: str,
    arguments: Sequence[str],
    to_lines: Callable[[Mapping[str, Any]], Iterable[str]] | None = None,
    *,
    json: bool,
) -> int:
    """Run a learn module to its end and return its exit code; its progress is shown as it comes.

    Without `json`, a JSON document that it prints is shown by `to_lines`. With `json`, an error becomes a
    document.
    """
    errors: list[str] = []
    code, printed = _run(command_line(module, arguments), spec_json(config), errors)
    if code != 0 and not errors and not printed:
        errors.append(f"gossipseg.learn.commands.{module} ended with exit code {code} and said nothing.")
        print(f"gossipctl: {errors[0]}", file=sys.stderr)
    _show(printed, None if json else to_lines)
    if json and code != 0 and not printed:
        error = {"schema": 1, "kind": "error", "error": module, "message": " ".join(errors)}
        out.print_json(error | {"exit_code": code})
    return code


def _run(command: Sequence[str], spec: str, errors: list[str]) -> tuple[int, str]:
    """Exit code and standard output; standard error is passed on, and its errors are added to `errors`."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment(), cwd=directory()
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        reader = threading.Thread(target=_pass_on, args=(process.stderr, errors))
        reader.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it died before it read: its exit code says why
                process.stdin.write(spec)
                process.stdin.close()
            printed = process.stdout.read()
            process.wait()
        finally:  # after Ctrl-C, too: it got the same signal, and may have a file to finish
            reader.join()
    # A death by signal N is reported as shells do it.
    return process.returncode if process.returncode >= 0 else 128 - process.returncode, printed


def _pass_on(lines: IO[str], errors: list[str]) -> None:
    """Progress and errors to stderr as they come; the errors are also kept."""
    for line in lines:
        if line.startswith("error: "):
            line = line.removeprefix("error: ")
            errors.append(line.strip())
            line = f"gossipctl: {line}"
        sys.stderr.write(line)
        sys.stderr.flush()


def _show(printed: str, to_lines: Callable[[Mapping[str, Any]], Iterable[str]] | None) -> None:
    if to_lines is None or not printed:
        print(printed, end="")
        return
    for line in to_lines(jsonlib.loads(printed)):
        print(line)
