"""The entry points of our programs, and failures before and after a command: the imports, the streams.

Each program's main module is imported inside its function. So Ctrl-C during the import, a closed stream, or
packages that do not fit together end in one line, not in a traceback. Only errors and the standard library
are imported here. What happens while a command of gossipctl or gossiplab runs is console's.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import runpy
import sys
from typing import NoReturn, TextIO

from gossipseg import __version__
from gossipseg.errors import EXIT_CONFIG, EXIT_FAILED, EXIT_IO, EXIT_OK

EXIT_INTERRUPTED = 130


def daemon() -> None:
    """gossipsegd."""
    _end(_run("gossipsegd", "gossipseg.daemon.main", EXIT_OK))


def ctl() -> None:
    """gossipctl."""
    _end(_run("gossipctl", "gossipseg.ctl.main", EXIT_INTERRUPTED))


def lab() -> None:
    """gossiplab."""
    _end(_run("gossiplab", "gossipseg.lab.main", EXIT_INTERRUPTED))


def learn() -> None:
    """`python -m gossipseg.ends gossipseg.learn.COMMAND …`: Ctrl-C during the import of torch ends
    quietly."""
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except ImportError as e:
        print(f"error: {in_words(e)}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)


def _end(code: int) -> NoReturn:
    """Exit with the code, whether or not the last words can be written: Python would make it 120."""
    try:
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)
    sys.exit(code)


def _run(program: str, module: str, interrupted: int) -> int:
    try:
        open_streams()
        code = importlib.import_module(module).main()
        return code if isinstance(code, int) else EXIT_OK
    except KeyboardInterrupt:
        return interrupted
    except SystemExit as e:  # --version and --help have only printed so far
        code = e.code if isinstance(e.code, int) else EXIT_OK if e.code is None else EXIT_FAILED
        return end_of_output(program, code)
    except Exception as e:
        if os.environ.get(f"{program.upper()}_TRACEBACK"):
            raise
        code = code_of(e)
        if "--json" in sys.argv[1:]:
            document = {"schema": 1, "kind": "error", "error": type(e).__name__, "message": in_words(e)}
            with contextlib.suppress(OSError):
                print(json.dumps(document | {"exit_code": code}), flush=True)
        print(f"{program}: {in_words(e)}", file=sys.stderr)
        return code


# ---------------------------------------------------------------- words


def in_words(error: BaseException) -> str:
    """One line about an unexpected error: what it is, and what to do."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if _of_the_installation(error):
        return (
            f"the installed packages do not fit together: {kind}: {text[:300]}. "
            "Install gossipseg again with its constraints.txt; `pip check` names what is wrong."
        )
    if isinstance(error, OSError) and error.strerror:
        names = ", ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
        where = f"{names}: " if names else ""
        return f"{where}{error.strerror}. Check that it is there, and that this user may use it."
    if isinstance(error, MemoryError):
        return "there is not enough memory. Give this machine or container more, or end something else on it."
    return (
        f"failed unexpectedly: {kind}: {text[:300]} (gossipseg {__version__}, "
        f"Python {sys.version.split()[0]}). Please report this line."
    )


def code_of(error: BaseException) -> int:
    """The error's exit code: incompatible packages do not mend themselves."""
    return EXIT_CONFIG if _of_the_installation(error) else EXIT_FAILED


def _of_the_installation(error: BaseException) -> bool:
    """Whether an import failed, or generated code refuses an older protobuf or grpc."""
    if isinstance(error, ImportError) or type(error).__name__ == "VersionError":
        return True
    return isinstance(error, RuntimeError) and "generated code" in str(error)


# ---------------------------------------------------------------- streams


def open_streams() -> None:
    """Reopen every standard stream that the caller closed (`>&-`).

    Otherwise the first file that is opened gets the stream's number, and printed text goes into that file. A
    closed output stays unwritable: the program is told.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free, which is this one
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8")


_OF_STREAMS = (errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.EIO, errno.EFBIG, errno.EAGAIN)


def stdout_failure(error: BaseException | None = None) -> str:
    """Why standard output cannot be written, or ""; `error` is what was raised while something was printed.

    A failed output is replaced: Python flushes it once more at its end, and would complain.
    """
    try:
        sys.stdout.flush()
    except OSError as e:
        error = e
    else:  # a failed flush may have thrown away what it could not write; our own files have names
        if not isinstance(error, OSError) or error.filename is not None or error.errno not in _OF_STREAMS:
            return ""
    silence_stdout()
    return f"standard output cannot be written: {error.strerror}"


def silence_stdout() -> None:
    """Discard what is printed from now on."""
    _silence(sys.stdout)


def _silence(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):  # one without a file, as a test's
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_of_output(program: str, code: int) -> int:
    """The exit code of a program that must have written its output by its end."""
    if why := stdout_failure():
        print(f"{program}: {why}", file=sys.stderr)
        return code or EXIT_IO
    return code


if __name__ == "__main__":
    learn()
