"""What the commands of this package share: the spec, progress on stderr, errors as exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gossipseg.ends import EXIT_INTERRUPTED, code_of, end_of_output, in_words, stdout_failure
from gossipseg.errors import EXIT_IO, ConfigError, GossipsegError
from gossipseg.learn.data.memory import is_out_of_memory
from gossipseg.learn.params import WorkerSpec
from gossipseg.learn.settings import read_spec


class Command(Protocol):
    """Runs with the parsed arguments; returns the exit code."""

    def __call__(self, args: argparse.Namespace) -> int: ...


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """An argument parser with --spec."""
    made = argparse.ArgumentParser(prog=f"python -m gossipseg.learn.commands.{name}", description=description)
    made.add_argument("--spec", required=True, metavar="FILE", help="the worker spec as JSON; - reads stdin")
    return made


def run(command: Command, arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse and run; an error raised on purpose becomes one paragraph on stderr and its exit code."""
    args = arguments.parse_args(argv)
    try:
        return end_of_output("error", command(args))
    except GossipsegError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as e:
        return _unexpected(e)


def _unexpected(error: Exception) -> int:
    code = code_of(error)
    if is_out_of_memory(error):
        kind = type(error).__name__
        text = f"not enough memory ({kind}). Give the process more, or work on fewer or smaller images."
    elif why := stdout_failure(error):
        text, code = f"{why}.", EXIT_IO
    elif os.environ.get("GOSSIPCTL_TRACEBACK"):
        raise error
    else:
        text = in_words(error)
    print(f"error: {text}", file=sys.stderr)
    return code


def spec_of(args: argparse.Namespace) -> WorkerSpec:
    """The WorkerSpec that --spec names. Raises ConfigError."""
    try:
        text = sys.stdin.read() if args.spec == "-" else Path(args.spec).read_text(encoding="utf-8")
        raw = json.loads(text)
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"the worker spec cannot be read: {e}",
            file=args.spec,
            remedy="gossipctl writes it from site.yaml.",
        ) from None
    return read_spec(raw)


def progress(min_interval_s: float = 0.5) -> Callable[[str, float], None]:
    """A function (activity, fraction) that writes a line to stderr, not more often than `min_interval_s`."""
    last = -min_interval_s

    def show(activity: str, fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= min_interval_s or fraction >= 1:
            last = now
            print(f"[{100 * fraction:3.0f}%] {activity}", file=sys.stderr, flush=True)

    return show


def write_json(document: dict[str, Any], out: str) -> None:
    """Write to a file, or to stdout for `-`."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if out == "-":
        sys.stdout.write(text)
    else:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
