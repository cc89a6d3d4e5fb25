"""One run of a command of gossipctl or gossiplab: its errors in words or JSON, signals, and its exit code.

A command runs once typer and the program's modules are imported. What fails earlier, or when the output is
flushed at the very end, is handled in ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from gossipseg.ends import EXIT_INTERRUPTED, code_of, in_words, silence_stdout, stdout_failure
from gossipseg.errors import EXIT_FAILED, EXIT_IO, EXIT_OK, EXIT_USAGE, GossipsegError, LocalError


def run(program: str, command: Callable[[], Any], *, as_json: bool, interrupted: str = "") -> int:
    """Call a typer application; returns its exit code. Errors are printed, never raised.

    `interrupted`: the text after Ctrl-C. With PROGRAM_TRACEBACK=1 in the environment (GOSSIPCTL_…) an
    unexpected error is raised as it is.
    """
    try:
        code = command()
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:  # typer makes a code of Ctrl-C itself
            return _interrupted(program, interrupted)
        return code if isinstance(code, int) else EXIT_OK
    except GossipsegError as e:
        return report(program, str(e), e.exit_code, type(e).__name__, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(program, interrupted)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        silence_stdout()
        return EXIT_FAILED
    except OSError as e:
        if why := stdout_failure(e):
            return report(program, why, EXIT_IO, type(e).__name__, False)
        return _unexpected(program, e, as_json)
    except Exception as e:
        return _unexpected(program, e, as_json)


def report(program: str, message: str, code: int, error: str, as_json: bool) -> int:
    """Print an error for a person, and as JSON where that was asked for; returns the exit code."""
    if as_json:
        document = {"schema": 1, "kind": "error", "error": error, "message": message, "exit_code": code}
        try:
            print(json.dumps(document, ensure_ascii=False), flush=True)
        except OSError:  # the error itself is told below, and its code stands
            silence_stdout()
    with contextlib.suppress(OSError):  # no reader is left
        print(f"{program}: {message}", file=sys.stderr)
    return code


def need(package: str, extra: str, purpose: str) -> None:
    """Raise LocalError where a package is not installed; the error names the extra that brings it."""
    if importlib.util.find_spec(package) is None:
        raise LocalError(
            f"{purpose} needs the package {package}, which is not installed. "
            f"Install it: pip install 'gossipseg[{extra}]'."
        )


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that no process is left behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(program: str, message: str) -> int:
    if message:
        print(f"{program}: {message}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _unexpected(program: str, error: Exception, as_json: bool) -> int:
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's own: wrong usage. Its class moved between versions of typer
        command = getattr(getattr(error, "ctx", None), "command_path", program)
        text = " ".join(str(format_message()).split())
        text += "" if text.endswith((".", "?")) else "."
        code = int(getattr(error, "exit_code", EXIT_USAGE))
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help, line by line
            with contextlib.suppress(OSError):
                print(format_message(), file=sys.stderr)
            return code
        return report(program, f"{text} Try `{command} --help`.", code, "UsageError", as_json)
    variable = f"{program.upper()}_TRACEBACK"
    if os.environ.get(variable):
        raise error
    text = in_words(error)
    if not isinstance(error, OSError | MemoryError):
        text += f" With {variable}=1 it shows where."
    return report(program, text, code_of(error), type(error).__name__, as_json)
