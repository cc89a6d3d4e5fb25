"""Structured logs: JSON lines, or text that the systemd journal shows well.

Every record may carry `event` (a stable name) and `fields` (a dict) through `extra`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from gossipseg.daemon.observe.outlet import Outlet, RotatingFile, write_to

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
MAX_REST = 8192
"""Longest part of an unfinished line; it is cut there."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: t, level, event, message and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        doc: dict[str, Any] = {
            "t": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            doc["traceback"] = self.formatException(record.exc_info)
        return json.dumps(doc, default=str)


class TextFormatter(logging.Formatter):
    """`event: message key=value …`; under the journal with a priority prefix, else with the time."""

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        if self.journal:
            head = f"<{_PRIORITY.get(record.levelno, 6)}>"
        else:
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            head = f"{clock} {record.levelname.lower():<7} "
        pairs = getattr(record, "fields", {}).items()
        fields = " ".join(f"{k}={_short(v)}" for k, v in pairs if v not in (None, "", {}))
        text = f"{head}{getattr(record, 'event', record.name)}: {record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and not value.isprintable():  # a peer's text must not forge lines
        return json.dumps(value)
    if isinstance(value, dict):
        return ",".join(f"{k}:{_short(v)}" for k, v in value.items())
    return value


# ---------------------------------------------------------------- where lines go

FLUSH_S = 1.0
"""Seconds for which unread lines may delay the end."""
_outlets: list[Outlet] = []
_replaced: TextIO | None = None


class OutletHandler(logging.Handler):
    """Formats a record and hands the line to an outlet."""

    def __init__(self, outlet: Outlet, formatter: logging.Formatter) -> None:
        super().__init__()
        self.outlet = outlet
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.outlet.put(_bytes(self.format(record)))
        except Exception:
            self.handleError(record)


class _Held(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def hold() -> None:
    """Keep log records until setup: the configuration that is being read says where logs go."""
    logging.basicConfig(level=logging.INFO, handlers=[_Held()], force=True)


def setup(form: str, level: str, file: RotatingFile | None = None) -> None:
    """Send all logs to stderr in the given form (`text` or `json`), and to a file if one is named.

    Callers never wait: lines go through a bounded queue. A later call replaces the earlier setting.
    """
    held = [record for h in logging.getLogger().handlers if isinstance(h, _Held) for record in h.records]
    close()
    handlers = [_handler("standard error", _stderr(), form, "JOURNAL_STREAM" in os.environ)]
    if file is not None:
        handlers.append(_handler("log.file", file.write, form, False))
    _outlets[:] = [h.outlet for h in handlers]
    logging.basicConfig(level=level.upper(), handlers=handlers, force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_of_use)
    for record in held:
        if (logger := logging.getLogger(record.name)).isEnabledFor(record.levelno):
            logger.handle(record)


def _of_use(record: logging.LogRecord) -> bool:
    """Whether a record is useful. A caller that left before its answer is not: gRPC logs that as an error
    with a traceback."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core")


def release() -> None:
    """Print the held records as text, where the configuration was never read."""
    if not _outlets:
        setup("text", "info")


def capture_stderr() -> None:
    """Redirect what libraries and Python print to stderr into the same queue; direct writes could block."""
    global _replaced
    if _replaced is None and _outlets:
        _replaced, sys.stderr = sys.stderr, _Stderr()


def say(line: str) -> None:
    """Print a line for the person who started the daemon: to stderr as it is, after all logs.

    A log file also gets it as a record, since nobody may be reading stderr.
    """
    if not _outlets:
        print(line, file=sys.stderr)
        return
    _outlets[0].put(_bytes(line))
    record = logging.LogRecord("stderr", logging.WARNING, "", 0, line, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, OutletHandler) and handler.outlet in _outlets[1:] and line.strip():
            handler.handle(record)


def lost() -> int:
    """Log lines lost since the start."""
    return sum(outlet.lost for outlet in _outlets)


def problem() -> str:
    """Why log lines cannot be written; "" if they can."""
    return "; ".join(filter(None, (outlet.problem() for outlet in _outlets)))


def close(timeout_s: float = FLUSH_S) -> None:
    """Write the waiting lines, for at most this time."""
    global _replaced
    if isinstance(sys.stderr, _Stderr):
        sys.stderr.end_line()
    deadline = time.monotonic() + timeout_s
    for outlet in _outlets:
        outlet.close(max(0.0, deadline - time.monotonic()))
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, OutletHandler):
            logging.getLogger().removeHandler(handler)
    _outlets.clear()
    if _replaced is not None:
        sys.stderr, _replaced = _replaced, None


def _handler(name: str, write: Callable[[bytes], None], form: str, journal: bool) -> OutletHandler:
    formatter = JsonFormatter() if form == "json" else TextFormatter(journal)

    def gap(lines: int) -> bytes:
        text = f"{lines} log lines before this one are lost: {name} did not accept them"
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, text, (), None)
        record.event = "log_lines_lost"
        record.fields = {"lines": lines}
        return _bytes(formatter.format(record))

    return OutletHandler(Outlet(name, write, gap), formatter)


def _stderr() -> Callable[[bytes], None]:
    stream = _replaced or sys.stderr
    try:
        return write_to(stream.fileno())
    except (AttributeError, OSError, ValueError):  # none, or one without a file, as a test's

        def write(line: bytes) -> None:
            stream.write(line.decode(errors="replace"))
            stream.flush()

        return write


def _bytes(line: str) -> bytes:
    return line.encode(errors="backslashreplace") + b"\n"


class _Stderr(io.TextIOBase):
    """Stands in for sys.stderr: whole lines go to the outlet."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > MAX_REST:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            say(line)
        return len(text)

    def end_line(self) -> None:
        """Write out an unfinished line."""
        if self._rest:
            self.write("\n")
